"""A child that puts one version after another into force until it is killed.

python -m tests.unit.predict.writing OUT: OUT/1 is a version; 2, 3, … are made of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.refit.due import current_version
from gateway.predict.refit.refit import next_version, write
from gateway.shipped import shipped
from tests.unit.predict.conftest import NAME


def main(out: Path) -> None:
    artefacts = Artefacts(shipped("models"), NAME, 64)
    found = artefacts.refitted(current_version(out)).refit
    assert found is not None
    while True:
        number = next_version(out)
        write(structs.replace(found, version=number), artefacts.base, out)
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
