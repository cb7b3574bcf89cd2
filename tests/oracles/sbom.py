"""The packages of this environment as a CycloneDX document: `python tests/oracles/sbom.py FILE`."""

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

SUBJECT = "isoframe"


def bill_of_materials() -> dict[str, Any]:
    """Name, version, licence and address of every package, those of Isoframe itself apart."""
    found = {one.name.lower().replace("_", "-"): one for one in distributions() if one.name}
    subject = found.pop(SUBJECT)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {**_component(SUBJECT, subject), "type": "application"},
        },
        "components": [_component(name, one) for name, one in sorted(found.items())],
    }


def _component(name: str, package: Distribution) -> dict[str, Any]:
    told = package.metadata
    address = f"pkg:pypi/{name}@{package.version}"
    component = {
        "type": "library",
        "bom-ref": address,
        "name": name,
        "version": package.version,
        "purl": address,
    }
    licence = told.get("License-Expression")
    classes = [
        line.rpartition(" :: ")[2]
        for line in told.get_all("Classifier") or ()
        if line.startswith("License ::")
    ]
    # The old field may hold the whole text.
    names = classes or [line for line in [(told.get("License") or "").partition("\n")[0]] if line]
    if licence:
        return {**component, "licenses": [{"expression": licence}]}
    return {**component, "licenses": [{"license": {"name": one}} for one in names]}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(bill_of_materials(), indent=1) + "\n", encoding="utf-8")
