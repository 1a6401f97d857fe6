import { Code } from "@connectrpc/connect";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { DeletionState, UserService } from "@gen/tradeloom/users/v1/users_pb.js";
import { screen, waitFor, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { DeletionBanner } from "./DeletionBanner";

const purgeTime = timestampFromDate(new Date(2026, 11, 26, 10, 3));

test("a scheduled deletion is shown with its time, and one click keeps the account", async () => {
  const asked: string[] = [];
  const api = await signedInApi(({ service }) => {
    service(UserService, {
      getDeletion: () => ({ deletion: { state: asked.length > 1 ? DeletionState.CANCELED : DeletionState.SCHEDULED, purgeTime } }),
      cancelDeletion: ({ requestId }) => {
        asked.push(requestId);
        if (asked.length === 1) throw refused(Code.Unavailable, "DEPENDENCY_UNAVAILABLE");
        return {};
      },
    });
  });
  const user = show(api, <DeletionBanner />);
  const banner = await screen.findByRole("region", { name: "Your account is going to be deleted" });
  expect(banner.textContent).toMatch(/not before .*26.*10:03/);
  await user.click(screen.getByRole("button", { name: "Keep my account" }));
  await waitFor(() => expect(within(banner).getByRole("status").textContent).not.toBe(""));
  await user.click(screen.getByRole("button", { name: "Keep my account" }));
  await waitFor(() => expect(screen.queryByRole("region")).toBeNull());
  expect(asked).toHaveLength(2);
  expect(new Set(asked).size).toBe(1);
});

test("without one nothing is shown", async () => {
  let looked = 0;
  const api = await signedInApi(({ service }) => {
    service(UserService, {
      getDeletion: () => {
        looked += 1;
        throw refused(Code.FailedPrecondition, "DELETION_NOT_SCHEDULED");
      },
    });
  });
  show(api, <DeletionBanner />);
  await waitFor(() => expect(looked).toBe(1));
  expect(screen.queryByRole("region")).toBeNull();
});
