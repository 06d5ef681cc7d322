"""What a step may cost beyond a loop, in calls: exact where times are not."""

from layerzoo.report.bench_step import LOOP, run_once


def test_a_step_makes_no_more_calls_than_a_quiet_trainer():
    calls = {name: run_once(name, 130, count_calls=True)[2] for name in (LOOP, "quiet Trainer", "Classify", "Classify that survives")}
    assert calls[LOOP] < 300
    assert calls["Classify that survives"] - calls["Classify"] <= 150
    assert calls["Classify that survives"] <= calls["quiet Trainer"]


def test_a_round_measures_every_variant(monkeypatch, capsys):
    from layerzoo.report import bench_step

    monkeypatch.setattr("sys.argv", ["bench_step", "--rounds", "2", "--steps", "60"])
    monkeypatch.setattr(bench_step, "VARIANTS", {LOOP: bench_step.run_loop, "quiet Trainer": bench_step.run_quiet})
    bench_step.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:30].strip() for line in lines] == ["", LOOP, "quiet Trainer"]
