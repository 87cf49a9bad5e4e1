"""README: its example prints what it says. README and the results page have the figures that commands stored."""

import json
import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TEXT = (ROOT / "notebooks" / "docs" / "results.md").read_text()
WORDS = " ".join(TEXT.split())
COMPLEXITIES = ("0.1", "1.0", "10.0", "100.0")
LOGISTIC_REGRESSION = 0.969  # on the same parts


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


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.S).group(1)


def without_numbers(text):
    return re.sub(r"\d+\.\d+", "#", text)


def printed_accuracy(text):
    return float(re.search(r"test accuracy (\d\.\d+)", text).group(1))


def test_readme_is_short():
    assert len(README.splitlines()) <= 130
    assert len(block("python").splitlines()) <= 20


def test_the_example_prints_what_readme_says(capsys):
    start = time.process_time()
    exec(block("python"), {})
    assert time.process_time() - start < 60
    out, said = capsys.readouterr().out, block("text")
    table, _, rest = out.partition("Space")
    assert without_numbers(table) == without_numbers(said.partition("Space")[0])
    for line in table.splitlines()[1:]:  # the derived cell has the most probable primitive of each edge
        edge, *cells = re.split(r"\s{2,}", line.strip())
        probabilities = dict(cell.rsplit(" ", 1) for cell in cells)
        best = max(probabilities, key=lambda name: float(probabilities[name]))
        assert re.search(rf"{edge.split()[1]}\s+{best}\b", rest)
    assert abs(printed_accuracy(out) - printed_accuracy(said)) <= 0.0125  # processors round in their own ways
    assert printed_accuracy(out) >= 0.975 > LOGISTIC_REGRESSION


def test_logistic_regression_is_what_readme_says():
    from sklearn.linear_model import LogisticRegression

    from pyro_nas.data import load

    data = load("digits")
    (x, y), (u, v) = data.known, data.test
    fitted = LogisticRegression(max_iter=1000).fit(x.flatten(1).numpy(), y.numpy())
    score = fitted.score(u.flatten(1).numpy(), v.numpy())
    assert score == pytest.approx(LOGISTIC_REGRESSION, abs=0.004)
    assert short(LOGISTIC_REGRESSION, 3) in README


def test_the_table_of_readme():
    digits, rank, best = stored("digits"), stored("rank"), stored("complexity_best")
    long, small = stored("compare_long")["methods"], stored("compare_short")["methods"]
    derived = digits["test"]["derived"]["accuracy"]
    assert (
        f"test accuracy {short(derived['mean'], 4)} ± {short(derived['sd'], 4)}, {len(digits['seeds'])} seeds" in README
    )
    ranks = {m: ", ".join(f"{entry['rank']:g}" for entry in rank["methods"][m]) for m in ("vardarts", "darts")}
    assert f"{ranks['vardarts']} (DARTS: {ranks['darts']})" in README
    accuracy = {m: spread(judged(entry)["accuracy"], 2, 100) for m, entry in long.items()}
    assert f"{accuracy['vardarts']}; random search {accuracy['random']}; without a search {accuracy['plain']}" in README
    accuracy = {m: spread(judged(entry)["accuracy"], 2, 100) for m, entry in small.items()}
    assert (f"as points {accuracy['vardarts_point']}, with a posterior {accuracy['vardarts']}; "
            f"DARTS {accuracy['darts']}") in README  # fmt: skip
    values = (spread(row["1.0"]["evidence"], 0) for row in best["rows"].values())
    assert f"| {', '.join(values)} |" in README
    ratios = {depth: [row["ours/by hand"] for row in last_run("bench")["rows"] if row["layers"] == depth]
              for depth in (2, 20)}  # fmt: skip
    said = [
        f"{min(ratios[depth]):.2f} to {max(ratios[depth]):.2f} ({name})"
        for depth, name in ((2, "two layers"), (20, "twenty"))
    ]
    assert ", ".join(said) in README


def test_digits():
    for name in ("posterior_predictive", "derived"):
        entry = stored("digits")["test"][name]
        assert f"| {spread(entry['accuracy'], 4)} | {spread(entry['calibration_error'], 4)} |" in TEXT


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
