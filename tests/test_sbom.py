"""The list of packages that a bundle ships with."""

import json
from importlib.metadata import version

from sbom import bill_of_materials


def test_every_package_is_listed_once_with_its_version() -> None:
    document = json.loads(json.dumps(bill_of_materials()))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "isoframe"
    found = {one["name"]: one for one in document["components"]}
    assert len(found) == len(document["components"])
    assert len({one["bom-ref"] for one in document["components"]}) == len(found)
    for name in ("torch", "av", "numpy"):
        assert found[name]["version"] == version(name)
    assert found["av"]["licenses"] == [{"expression": "BSD-3-Clause"}]
