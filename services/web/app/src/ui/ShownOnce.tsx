import { Button, Group, Stack, Text } from "@mantine/core";
import { useClipboard } from "@mantine/hooks";
import { IconCheck, IconCopy, IconDownload } from "@tabler/icons-react";
import type { ReactNode } from "react";
import classes from "./ShownOnce.module.css";

interface Props {
  /** What it is, such as "Recovery codes". */
  label: string;
  secret: string;
  /** Offers to keep it as a file of this name. */
  fileName?: string;
  /** On the button that ends the showing. */
  done: string;
  onDone(): void;
  children: ReactNode;
}

/** A secret that is never shown again: in this component's memory only, until the person says it is kept. */
export function ShownOnce({ label, secret, fileName, done, onDone, children }: Props) {
  const clipboard = useClipboard({ timeout: 3_000 });
  return (
    <Stack gap="sm">
      <Text size="sm" component="div">
        {children}
      </Text>
      <pre className={classes.secret} aria-label={label} tabIndex={0}>
        {secret}
      </pre>
      <Group gap="xs">
        <Button
          size="xs"
          variant="default"
          leftSection={clipboard.copied ? <IconCheck size={15} aria-hidden /> : <IconCopy size={15} aria-hidden />}
          onClick={() => clipboard.copy(secret)}
        >
          {clipboard.copied ? "Copied" : "Copy"}
        </Button>
        {fileName && (
          <Button size="xs" variant="default" leftSection={<IconDownload size={15} aria-hidden />} onClick={() => download(fileName, secret)}>
            Download
          </Button>
        )}
        <Button size="xs" ml="auto" onClick={onDone}>
          {done}
        </Button>
      </Group>
      {clipboard.error && (
        <Text size="xs" c="var(--warning)" role="status">
          This browser does not let the page copy. Select the text and copy it yourself.
        </Text>
      )}
    </Stack>
  );
}

/** Hands a text to the browser as a file; nothing leaves this machine. */
function download(fileName: string, text: string): void {
  const url = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/plain" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = fileName;
  link.click();
  URL.revokeObjectURL(url);
}
