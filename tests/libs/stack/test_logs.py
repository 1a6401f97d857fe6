from libs.stack.logs import Log, older, tail


def test_a_full_log_begins_anew_and_keeps_one_older_file(tmp_path):
    file = tmp_path / "orders.log"
    log = Log(file, bytes_max=100)
    for number in range(100):
        log.write(f"line {number:03}\n".encode())
    log.close()
    assert file.stat().st_size <= 100
    assert older(file).stat().st_size <= 100
    assert (older(file).read_text() + file.read_text()).endswith("line 098\nline 099\n")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_log_is_continued_after_a_restart(tmp_path):
    for word in ("first\n", "second\n"):
        log = Log(tmp_path / "orders.log")
        log.write(word.encode())
        log.close()
    assert (tmp_path / "orders.log").read_text() == "first\nsecond\n"


def test_only_its_owner_reads_a_log(tmp_path):
    Log(tmp_path / "orders.log").close()
    assert (tmp_path / "orders.log").stat().st_mode & 0o777 == 0o600


def test_the_tail_of_a_log_is_its_last_lines(tmp_path):
    (tmp_path / "orders.log").write_text("".join(f"{n}\n" for n in range(10_000)))
    assert tail(tmp_path / "orders.log", lines_max=2) == "9998\n9999"
    assert tail(tmp_path / "absent.log") == ""
