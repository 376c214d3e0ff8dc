"""Progress: plain lines where stderr is no terminal."""

from __future__ import annotations

import pytest

from camify.cli.commands import main
from camify.progress import tracked


@pytest.mark.parametrize(("total", "lines"), [(2, [1, 2]), (3, [1, 2, 3]), (40, range(4, 41, 4)), (25, None)])
def test_a_pass_prints_at_most_ten_plain_lines(total, lines, capsys):
    assert list(tracked(range(total), "measuring, batch", total)) == list(range(total))
    printed = capsys.readouterr()
    assert printed.out == ""
    found = printed.err.splitlines()
    assert len(found) == min(total, 10)
    assert found[-1] == f"measuring, batch {total} of {total}"
    if lines is not None:
        assert found == [f"measuring, batch {done} of {total}" for done in lines]


@pytest.mark.parametrize("total", [0, 1])
def test_nothing_is_printed_of_a_pass_without_several_items(total, capsys):
    assert list(tracked(range(total), "measuring, batch", total)) == list(range(total))
    assert capsys.readouterr().err == ""


def test_evaluate_says_how_far_each_pass_is_when_piped(net, root, tmp_path, capsys):
    folder = net.save_pretrained(tmp_path / "net")
    arguments = ["--model", folder, "--data", root, "--out", tmp_path / "out", "--device", "cpu", "--workers", "0"]
    main(["evaluate", *map(str, arguments), "--batch_size", "5", "--faithfulness", "6"])
    printed = capsys.readouterr().err
    assert "measuring, batch 1 of 3\n" in printed
    assert "mosaics, batch " in printed
    assert "measuring closely, batch 1 of 2\n" in printed
    assert printed.isascii()
    assert not set(printed) & {"\r", "\b", "\x1b"}


def test_the_time_that_is_left(capsys, monkeypatch):
    """Ten items of 30 seconds each."""
    now = iter(range(0, 3000, 30))
    monkeypatch.setattr("camify.progress.time.monotonic", lambda: float(next(now)))
    assert list(tracked(range(10), "fitting, batch", 10)) == list(range(10))
    found = capsys.readouterr().err.splitlines()
    assert found[0] == "fitting, batch 1 of 10, 4 min left"
    assert found[6] == "fitting, batch 7 of 10, 90 s left"
    assert found[-1] == "fitting, batch 10 of 10"


def test_a_short_pass_is_silent_where_patience_is_asked(capsys, monkeypatch):
    assert len(list(tracked(range(10), "fitting, batch", 10, patience=60))) == 10
    assert len(list(tracked(range(10), "fitting, batch", None))) == 10
    assert capsys.readouterr().err == ""
    now = iter(range(0, 3000, 2))
    monkeypatch.setattr("camify.progress.time.monotonic", lambda: float(next(now)))
    assert len(list(tracked(range(10), "fitting, batch", 10, patience=5))) == 10
    assert capsys.readouterr().err.splitlines()[0] == "fitting, batch 3 of 10, 14 s left"
