"""README: its example runs, and its figures are those that the commands stored."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
WORDS = " ".join(TEXT.split())
COMPLEXITIES = ("0.1", "1.0", "10.0", "100.0")


def stored(name):
    return json.loads((ROOT / "notebooks" / f"{name}.json").read_text())


def last_run(benchmark):
    return json.loads((ROOT / "notebooks" / f"{benchmark}.jsonl").read_text().splitlines()[-1])


def spread(value, digits, unit=1):
    return f"{unit * value['mean']:.{digits}f} ± {unit * value['sd']:.{digits}f}"


def short(value, digits):
    return f"{value:.{digits}f}".replace("0.", ".")


def judged(entry):
    return entry["test"][entry["judged_by"]]


def seconds(entry):
    return " + ".join(f"{entry[phase]['seconds']['mean']:.0f}" for phase in ("search", "retrain") if phase in entry)


def operations(entry):
    return f"{entry['cost']['multiply_accumulates']['mean'] / 1e6:.1f} M"


def test_the_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    exec(code.replace("epochs=40", "epochs=1"), {})
    out = capsys.readouterr().out
    assert "posterior predictive accuracy" in out
    assert "derived" in out


def test_digits():
    for name in ("posterior_predictive", "derived"):
        found = stored("digits")["test"][name]
        assert f"| {spread(found['accuracy'], 4)} | {spread(found['calibration_error'], 4)} |" in TEXT


def test_every_complexity():
    best = stored("complexity_best")
    for row in best["rows"].values():
        for complexity in COMPLEXITIES:
            for metric, digits in (("evidence", 0), ("accuracy", 3), ("stability", 2)):
                assert spread(row[complexity][metric], digits) in TEXT
        updates, seconds = f"{row['updates']:,}".replace(",", " "), row["seconds"]["mean"]
        assert re.search(rf"{updates}\D*{seconds:.0f} s", TEXT)
    gaps = best["largest_gap"]["spline"].values()
    assert f"nowhere further than {', '.join(f'{gap:.3f}' for gap in gaps)}" in WORDS


def test_the_speed_of_every_complexity():
    speed = stored("complexity_speed")
    assert f"{speed['race']['ratio']:.2f} of the time" in WORDS
    assert f"{speed['race']['annealed_ratio']:.2f} of what these would take" in WORDS
    reached = [f"{speed['rows']['spline'][value]['evidence']['mean']:.0f}" for value in COMPLEXITIES]
    assert f"to an 𝔏 of {', '.join(reached)} at these λ" in WORDS


def test_steps_of_a_fit():
    bench = last_run("bench")
    for row in bench["rows"]:
        assert f"{row['ours/by hand']:.2f}" in TEXT
    for key, words in (("five/one", "times a step with one"), ("five, dealt/one", "times where")):
        ratios = [row[key] for row in bench["complexity"]]
        assert f"{min(ratios):.2f} to {max(ratios):.2f} {words}" in WORDS


def test_steps_of_a_search():
    search = last_run("bench_search")
    for label, name in (("deterministic, all primitives", "deterministic"), ("VarDARTS", "VarDARTS"),
                        ("hard sample, one primitive an edge", "hard sample")):  # fmt: skip
        ratios = [search[part][name] / search[part]["by hand"] for part in ("milliseconds", "peak_mib")]
        assert f"| {label} | {ratios[0]:.2f} | {ratios[1]:.2f} |" in TEXT


def test_ranks():
    rank = stored("rank")
    for method, entries in rank["methods"].items():
        accuracy = sum(entry["accuracy"] for entry in entries) / len(entries)
        ranks = ", ".join(f"{entry['rank']:g}" for entry in entries)
        known = [entry["spearman"] for entry in entries if entry["spearman"] is not None]
        correlation = f"{sum(known) / len(known):.2f}" if known else "–"
        assert f"| {method} | {ranks} | {accuracy:.4f} | {correlation} |" in TEXT
    assert f"correlate by {min(rank['spearman_of_seeds']):.2f}" in TEXT
    best, second = sorted(rank["accuracy"], reverse=True)[:2]
    assert f"its lead over the next is {3 * 360 * (best - second):.0f} of 3 × 360" in WORDS
    assert rank["accuracy"].index(best) == 3 * 25 + 3 * 5 + 3  # of five primitives the fourth, on all three edges
    assert rank["config"]["primitives"][3] == "convolution 3"


def test_the_short_comparison():
    methods = stored("compare_short")["methods"]
    for method, entry in methods.items():
        light = sum(cell["skip"] + cell["pool"] for cell in entry["choices"].values())
        curves = judged(entry)["robustness"]
        assert (
            f"| {method} | {spread(judged(entry)['accuracy'], 2, 100)} | {seconds(entry)} | {operations(entry)} | "
            f"{light:.1f} | {spread(curves['attack']['0.1'], 1, 100)} | "
            f"{spread(curves['deleted_edges']['0.3'], 1, 100)} |"
        ) in TEXT
    own, points = (judged(methods[m])["calibration_error"]["mean"] for m in ("vardarts", "vardarts_point"))
    assert f"error is {short(own, 3)} where its cells as points have {short(points, 3)}" in WORDS
    for method, words in (
        ("vardarts", "agree on {} of the edges of normal cells and on {} of"),
        ("darts", "on {} and {} (chance"),
    ):
        cells = [methods[method]["choices"][f"structure.{cell}"] for cell in ("normal", "reduction")]
        assert words.format(*(short(cell["agreement"], 2) for cell in cells)) in WORDS


def test_the_long_comparison():
    for method, entry in stored("compare_long")["methods"].items():
        assert entry["seeds"] == 3
        assert (
            f"| {method} | {spread(judged(entry)['accuracy'], 2, 100)} | {seconds(entry)} | "
            f"{entry['cost']['parameters']['mean'] / 1e3:.0f} 000 | {operations(entry)} | "
            f"{spread(judged(entry)['calibration_error'], 3)} |"
        ) in TEXT
