import { describe, expect, test } from "vitest";
import { affordable, isMultiple, less, placesOf, product, shown, stepped, textOf, typed, unitsOf } from "./decimal";

describe("decimals", () => {
  test("keep every digit that a double would lose", () => {
    for (const text of ["0.1", "123456789012345678.123456789012345678", "-0.000000000000000001", "0"]) {
      expect(textOf(unitsOf(text)!)).toBe(text);
    }
  });

  test("take nothing the contract would refuse", () => {
    for (const text of ["", "1e5", "+1", "1.", ".5", "1,000", "NaN", "0.1234567890123456789"]) {
      expect(unitsOf(text)).toBeUndefined();
    }
  });

  test("know multiples exactly", () => {
    expect(isMultiple("0.3", "0.1")).toBe(true);
    expect(isMultiple("1.005", "0.01")).toBe(false);
    expect(isMultiple("7", "0")).toBe(false);
  });

  test("multiply exactly", () => {
    expect(product("43250.10", "0.25")).toBe("10812.525");
    expect(product("x", "1")).toBeUndefined();
  });

  test("find the largest quantity money buys, on the lot", () => {
    expect(affordable("100", "30", "0.001")).toBe("3.333");
    expect(affordable("100", "0", "0.001")).toBe("0");
    expect(less("1000", "0.001")).toBe("999");
  });

  test("step on the grid and not below zero", () => {
    expect(stepped("1.005", "0.01", 1)).toBe("1.01");
    expect(stepped("", "0.5", 1)).toBe("0.5");
    expect(stepped("0.5", "0.5", -3)).toBe("0");
    expect(placesOf("0.010")).toBe(2);
    expect(placesOf("1")).toBe(0);
  });

  test("are shown grouped and rounded, for reading only", () => {
    expect(shown("1234567.5")).toBe("1,234,567.50");
    expect(shown("-1234.005", 2, 2)).toBe("-1,234.01");
    expect(shown("-0.0000000001", 2, 2)).toBe("0.00");
    expect(shown("42", 0)).toBe("42");
    expect(shown(undefined)).toBe("–");
  });

  test("are read the way people type them", () => {
    expect(typed(" 1,000.5 ")).toBe("1000.5");
    expect(typed(".5")).toBe("0.5");
    expect(typed("5.")).toBe("5");
    expect(typed("1,000,000")).toBe("1000000");
  });

  test("are not read as something a hundred times as large where a comma may mean a point", () => {
    for (const text of ["0,25", "1,5", "1,000", "0,250", "1.000,5", "12,34.5", ",5"]) {
      expect(unitsOf(typed(text))).toBeUndefined();
    }
  });
});
