import { Combobox, InputBase, Loader, Text, useCombobox } from "@mantine/core";
import { useDebouncedValue, useHotkeys } from "@mantine/hooks";
import { IconSearch } from "@tabler/icons-react";
import { useRef, useState } from "react";
import { refusalOf } from "@/api/refusal";
import { useInstruments } from "./useInstruments";

const TYPING_PAUSE_MILLISECONDS = 200;

/** Finds an instrument by the start of its id, symbol or description. */
export function InstrumentPicker({ chosen, onChoose }: { chosen: string | undefined; onChoose(instrumentId: string): void }) {
  const [search, setSearch] = useState("");
  const [query] = useDebouncedValue(search.trim(), TYPING_PAUSE_MILLISECONDS);
  const found = useInstruments(query);
  const field = useRef<HTMLInputElement>(null);
  useHotkeys([["/", () => field.current?.focus()]]);
  const combobox = useCombobox({
    onDropdownClose: () => {
      combobox.resetSelectedOption();
      setSearch("");
    },
    onDropdownOpen: () => combobox.updateSelectedOptionIndex("active"),
  });

  return (
    <Combobox
      store={combobox}
      width={300}
      position="bottom-start"
      onOptionSubmit={(instrumentId) => {
        onChoose(instrumentId);
        combobox.closeDropdown();
      }}
    >
      <Combobox.Target>
        <InputBase
          ref={field}
          w={210}
          size="sm"
          aria-label="Instrument"
          aria-keyshortcuts="/"
          placeholder="Find an instrument"
          leftSection={<IconSearch size={15} aria-hidden />}
          rightSection={found.isFetching ? <Loader size={14} /> : <Combobox.Chevron />}
          rightSectionPointerEvents="none"
          value={combobox.dropdownOpened ? search : (chosen ?? "")}
          onFocus={() => combobox.openDropdown()}
          onClick={() => combobox.openDropdown()}
          onBlur={() => combobox.closeDropdown()}
          onChange={(event) => {
            setSearch(event.currentTarget.value);
            combobox.openDropdown();
            combobox.resetSelectedOption();
          }}
        />
      </Combobox.Target>
      <Combobox.Dropdown>
        <Combobox.Options mah={320} style={{ overflowY: "auto" }}>
          {found.isError && <Combobox.Empty>{refusalOf(found.error).message}</Combobox.Empty>}
          {found.data?.length === 0 && <Combobox.Empty>Nothing starts with “{query}”.</Combobox.Empty>}
          {found.data?.map(({ instrumentId, description }) => (
            <Combobox.Option key={instrumentId} value={instrumentId} active={instrumentId === chosen}>
              <Text size="sm" fw={500}>
                {instrumentId}
              </Text>
              <Text size="xs" c="dimmed">
                {description}
              </Text>
            </Combobox.Option>
          ))}
        </Combobox.Options>
      </Combobox.Dropdown>
    </Combobox>
  );
}
