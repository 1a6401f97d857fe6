import { Button, Stack, TagsInput, Textarea } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { RefusalAlert } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import type { Annotation } from "./accountOrders";
import { putIntoLists } from "./useOrderList";

const NOTE_LENGTH_MAX = 500;
const TAGS_MAX = 10;
/** As the contract has it: small letters and digits first. */
const TAG = /^[a-z0-9][a-z0-9._:-]{0,31}$/;

/** What its owner noted about an order, to read and to change. */
export function Annotate({ orderId, annotation }: { orderId: string; annotation: Annotation }) {
  const { orders } = useApi();
  const queries = useQueryClient();
  const { takeAnnotated } = useAccountOrders();
  const [note, setNote] = useState(annotation.note);
  const [tags, setTags] = useState<string[]>([...annotation.tags]);
  const [requestId, setRequestId] = useState(newRequestId);
  const annotating = useMutation({
    mutationFn: async () => {
      const { order } = await orders.annotateOrder({ requestId, orderId, note: note.trim(), tags });
      if (!order) return;
      putIntoLists(queries, order);
      takeAnnotated([order]);
    },
    onSuccess: () => {
      notifications.show({ color: "teal", title: "Noted", message: "Nobody but you sees it." });
      setRequestId(newRequestId());
    },
  });
  const refusal = annotating.error ? refusalOf(annotating.error) : undefined;
  const badTag = tags.find((tag) => !TAG.test(tag));
  const isSame = note.trim() === annotation.note && tags.join("\n") === annotation.tags.join("\n");
  const changed = () => {
    setRequestId(newRequestId());
    annotating.reset();
  };
  return (
    <form
      aria-label="Note and tags"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (!isSame && badTag === undefined && !annotating.isPending) annotating.mutate();
      }}
    >
      <Stack gap="xs">
        <Textarea
          label="Note"
          rows={2}
          maxLength={NOTE_LENGTH_MAX}
          value={note}
          onChange={(event) => {
            setNote(event.currentTarget.value);
            changed();
          }}
          error={violationOf(refusal, "note")}
        />
        <TagsInput
          label="Tags"
          maxTags={TAGS_MAX}
          placeholder={tags.length === 0 ? "such as breakout" : ""}
          splitChars={[",", " "]}
          acceptValueOnBlur
          value={tags}
          onChange={(next) => {
            setTags(next.map((tag) => tag.toLowerCase()));
            changed();
          }}
          error={badTag === undefined ? violationOf(refusal, "tags") : `“${badTag}”: letters, digits and . _ : - after the first, 32 at most`}
        />
        {refusal && <RefusalAlert error={refusal} />}
        <Button type="submit" size="xs" variant="default" w="fit-content" loading={annotating.isPending} disabled={isSame || badTag !== undefined}>
          Keep
        </Button>
      </Stack>
    </form>
  );
}
