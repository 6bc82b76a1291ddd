"""What the report of a run of segmentation or detection shows beside that of pre-training."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from mae.config.detect import DetectConfig
from mae.config.segment import SegmentConfig
from mae.report.detections import detect_facts, detect_sections
from mae.report.figures import element
from mae.report.run import RunFacts
from mae.report.segments import segment_facts, segment_sections


def transfer_results(run: RunFacts) -> dict[str, Any] | None:
    """Return results.json of such a run; None before its end, and of other runs."""
    path = run.files.results
    if not isinstance(run.config, SegmentConfig | DetectConfig) or not path.exists():
        return None
    results: dict[str, Any] = json.loads(path.read_bytes())
    return results


def transfer_facts(run: RunFacts, results: Mapping[str, Any]) -> dict[str, str]:
    """Return the scores as text, by name."""
    return (detect_facts if isinstance(run.config, DetectConfig) else segment_facts)(results)


def transfer_sections(run: RunFacts, results: Mapping[str, Any]) -> Iterator[Element]:
    """Yield the tables and the examples."""
    sections = detect_sections if isinstance(run.config, DetectConfig) else segment_sections
    yield from sections(results, run.files.images)


def transfer_commands(run: RunFacts) -> Iterator[Element]:
    """Show the commands that use what was trained."""
    here, data = shlex.quote(run.name), shlex.quote(str(run.record["data"].get("path")))
    boxes = isinstance(run.config, DetectConfig)
    verb, noun, use = (
        ("detect", "boxes", "find objects") if boxes else ("segment", "masks", "segment images")
    )
    yield element("p", f"To score it on other {noun}, and to {use}:")
    yield element(
        "pre",
        f"mae {verb} evaluate {here} --data {data} --out evaluation.html\n"
        f"mae {verb} predict {here} IMAGES --out predictions",
    )
