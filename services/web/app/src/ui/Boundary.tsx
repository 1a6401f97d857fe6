import { Button, Center, Stack, Text } from "@mantine/core";
import { Component, type ReactNode } from "react";

interface Props {
  /** Where one is; going elsewhere tries anew. */
  place: string;
  children: ReactNode;
}

interface State {
  brokenPlace: string | undefined;
}

/** Keeps the rest of the page alive when one view breaks, also when a newer page has replaced its files. */
export class Boundary extends Component<Props, State> {
  override state: State = { brokenPlace: undefined };

  override componentDidCatch(): void {
    this.setState({ brokenPlace: this.props.place });
  }

  static getDerivedStateFromError(): Partial<State> {
    return { brokenPlace: "" };
  }

  static getDerivedStateFromProps({ place }: Props, { brokenPlace }: State): Partial<State> | null {
    return brokenPlace && brokenPlace !== place ? { brokenPlace: undefined } : null;
  }

  override render(): ReactNode {
    if (this.state.brokenPlace === undefined) return this.props.children;
    return (
      <Center h="100%" p="md" role="alert">
        <Stack align="center" gap="xs">
          <Text fw={600}>This view broke</Text>
          <Text size="sm" c="dimmed" ta="center" maw={420}>
            Your orders are not affected. Loading the page again usually helps.
          </Text>
          <Button size="xs" onClick={() => window.location.reload()}>
            Load again
          </Button>
        </Stack>
      </Center>
    );
  }
}
