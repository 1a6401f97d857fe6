"""How Python looks for memory to give back, before and after a program has loaded."""

import gc
import subprocess
import sys

import pytest

from libs import loading


@pytest.fixture
def threshold():
    usual = gc.get_threshold()
    yield usual
    gc.set_threshold(*usual)


def test_a_program_that_loads_is_hardly_looked_through_and_as_ever_once_it_works(monkeypatch, threshold):
    monkeypatch.setattr(sys, "argv", ["-m"])
    loading.begin()
    assert gc.get_threshold()[0] == loading.OBJECTS_MAX
    frozen = gc.get_freeze_count()
    made = [[] for _ in range(10)]
    loading.end()
    assert gc.get_threshold() == loading.USUAL
    assert gc.get_freeze_count() >= frozen + len(made)


def test_who_only_imports_a_program_is_looked_through_as_before(threshold):
    loading.begin()
    assert gc.get_threshold() == threshold


@pytest.mark.parametrize("package", ["services", "migrations"])
def test_programs_of_every_package_begin_before_they_load_anything(package):
    script = f"import gc, sys; sys.argv = ['-m']; import {package}; print(gc.get_threshold()[0])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) == loading.OBJECTS_MAX
