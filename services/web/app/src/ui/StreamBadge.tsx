import { Code } from "@connectrpc/connect";
import { Badge, Tooltip } from "@mantine/core";
import type { StreamState } from "@/api/resuming";

/** Whether what is shown is live. */
export function StreamBadge({ what, state }: { what: string; state: StreamState }) {
  const { color, label, hint } = wordsFor(state);
  return (
    <Tooltip label={`${what}: ${hint}`} multiline maw={300} events={{ hover: true, focus: true, touch: true }}>
      <Badge
        size="sm"
        variant="dot"
        tt="none"
        fw={500}
        color={color}
        tabIndex={0}
        role="status"
        aria-label={`${what}: ${label}`}
        data-testid={`stream-${what.toLowerCase().replace(/ /g, "-")}`}
        data-phase={state.phase}
        {...("refusal" in state && { "data-refusal": `${Code[state.refusal.code]} ${state.refusal.reason}`.trim() })}
      >
        {state.phase === "live" ? what : `${what}: ${label.toLowerCase()}`}
      </Badge>
    </Tooltip>
  );
}

function wordsFor(state: StreamState): { color: string; label: string; hint: string } {
  switch (state.phase) {
    case "queued":
      return { color: "gray", label: "Waiting", hint: "other windows use all live streams this browser may have here" };
    case "resting":
      return { color: "gray", label: "Resting", hint: "resumes when this window is seen" };
    case "connecting":
      return { color: "gray", label: "Connecting", hint: "connecting" };
    case "live":
      return { color: "teal", label: "Live", hint: "live" };
    case "waiting":
      return { color: "yellow", label: "Reconnecting", hint: `${state.refusal.message} Resumes where it broke off.` };
    case "ended":
      return { color: "red", label: "Stopped", hint: state.refusal.message };
  }
}
