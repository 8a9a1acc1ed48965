"""The gain of a refit on the gateway's own rows, and what features it needs for it.

    python -m tests.bench.refit_gain --data FILE --vectors FILE.npz --fit-rows N [--limit N]
        [--by-source] [--hide _run_]

Rows go through the serving predictor in order, each learned right after its forecast. After the
first `--fit-rows` of them a refit is made from the rows that history would hold; the later rows
are then forecast by the shipped models and by the refitted ones, which go on learning alike.
`--hide TEXT` adds a refit that was not shown the cheap features with TEXT in their names: the
price of deleting them. Only rows that the shipped models never saw are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.features import NAMES
from gateway.predict.forecast import pack_floats, unpack_floats
from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView, cut
from gateway.predict.refit.due import current_version
from gateway.predict.refit.refit import refit
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow
from gateway.workbench import figures
from gateway.workbench.evaluate.judged_rows import Case, choose, fit_keys, read
from gateway.workbench.evaluate.vectors import Prompt, RecordedEncoder, vectors_of

SHOWN = ("kendall_tau", "pinball", "auc_short", "coverage_p90")


class Play:
    """The rows, and the models they are replayed through."""

    def __init__(self, args: argparse.Namespace) -> None:
        models, self.settings = shipped("models"), Predict()
        self.by_source: bool = args.by_source
        chosen = choose(read(args.data), fit_keys(models), limit=args.limit)
        self.first, self.later = np.split(np.array(chosen.cases, object), [args.fit_rows])
        name, cap = self.settings.embedding_model_name, self.settings.max_encoder_tokens
        self.artefacts = Artefacts(models, name, cap)
        assert self.artefacts.encoder is not None
        views = [case.view for case in chosen.cases if case.view.text.strip()]
        prompts = [Prompt(cut(v.text, self.settings.max_chars), v.system) for v in views]
        vectors = vectors_of(prompts, models, self.settings, args.vectors, workers=2)
        width, reader = self.artefacts.encoder.width, self.artefacts.encoder
        self.artefacts.encoder = RecordedEncoder(vectors, width, cap, reader=reader)

    def history(self) -> tuple[LearningForecaster, list[HistoryRow]]:
        """A forecaster that learned the first rows, and these as history keeps them."""
        forecaster = LearningForecaster(self.settings, self.artefacts, b"bench", {})
        return forecaster, [forecaster.learn(self.lesson(case)) for case in self.first]

    def figures(self, adopted: Artefacts | None) -> dict[str, Any]:
        """Figures of the later rows, by other models from there on where some are given."""
        forecaster, _ = self.history()
        if adopted is not None:
            forecaster.adopt(adopted)
        forecasts = []
        for case in self.later:
            forecasts.append(forecaster.forecast(self.view(case)))
            forecaster.learn(self.lesson(case))
        return figures.judged(
            np.array([forecast.grid for forecast in forecasts]),
            np.array([forecast.p_short for forecast in forecasts]),
            np.array([case.output_tokens for case in self.later], float),
            np.array([case.censored for case in self.later], bool),
        )

    def view(self, case: Case) -> PromptView:
        tenant = case.source if self.by_source else case.view.tenant
        return structs.replace(case.view, tenant=tenant)

    def lesson(self, case: Case) -> Lesson:
        return Lesson(
            view=self.view(case),
            output_tokens=case.output_tokens,
            prompt_tokens=None,
            censored=case.censored,
            success=True,
            wall_s=float(case.seq),
        )


def blinded(rows: Sequence[HistoryRow], text: str) -> list[HistoryRow]:
    """The rows without the cheap features that have `text` in their names."""
    at = [i for i, name in enumerate(NAMES) if text in name]
    found = []
    for row in rows:
        features = unpack_floats(row.features)
        for column in at:
            features[column] = float("nan")
        found.append(structs.replace(row, features=pack_floats(features)))
    return found


def line(name: str, found: dict[str, Any], note: str = "") -> str:
    values = (f"{found[figure]:.4f}" for figure in SHOWN)
    return f"| {name} | {' | '.join(values)} | {note} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--vectors", type=Path, required=True, help="file for them, made where missing"
    )
    parser.add_argument("--fit-rows", type=int, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--by-source", action="store_true", help="each source is a tenant")
    parser.add_argument("--hide", default="")
    args = parser.parse_args()
    play = Play(args)
    print(f"{len(play.first)} rows fitted, {len(play.later)} judged\n")
    print(f"| models | {' | '.join(SHOWN)} | pinball that the refit expected, old → new |")
    print(f"|---|{'---|' * len(SHOWN)}---|")
    print(line("as shipped", play.figures(None)))
    rows = play.history()[1]
    refits = {"refitted": rows}
    if args.hide:
        refits[f"refitted without {args.hide}"] = blinded(rows, args.hide)
    for name, own in refits.items():
        with TemporaryDirectory() as folder:
            done = refit(own, play.artefacts, Path(folder))
            version = current_version(Path(folder))
            adopted = None if version is None else play.artefacts.refitted(version)
            note = ", ".join(f"{j.old} → {j.new}" for j in (done.stage0, done.full))
            print(line(name, play.figures(adopted), note))


if __name__ == "__main__":
    main()
