"""A gate's verdict as text: Markdown for a pull request, JUnit XML, GitHub annotations. Pure; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as XML

from trilemma_bench.gate import Check, Verdict
from trilemma_bench.render import escape, printable

ADVICE = {
    "samples": "The images themselves are others: look at samplers, networks, weights, noise and rounding.",
    "features": "The extractor or the real reference is another: look at their weights and at the reference's data.",
    "metric": "The images are the same and the number is another: look at the metric and its parameters.",
    "scores": "Scores left the range of their seeds; without images at hand the stage is not known.",
    "speed": "Sampling takes another time beside the same reference load.",
}
REMAKE = "If the change is meant, make the expectations again with `trilemma-bench expect make` and commit them too."
_MARKS = {"ok": "ok", "drift": "**drift**", "not judged": "not judged", "unusable": "**unusable**"}


def headline(verdict: Verdict) -> str:
    """The verdict in one line."""
    counts = {state: sum(check.state == state for check in verdict.checks) for state in _MARKS}
    judged = counts["ok"] + counts["drift"]
    if not judged and not counts["unusable"]:
        return "Gate: unusable, nothing could be judged: run it without --results"
    if verdict.exit_code == 2:
        return f"Gate: unusable, {counts['unusable']} could not be judged; {counts['drift']} of {judged} checks drifted"
    if verdict.exit_code == 1:
        return f"Gate: drift in {', '.join(verdict.stages)}; {counts['drift']} of {judged} checks"
    left = f", {counts['not judged']} could not be judged here" if counts["not judged"] else ""
    return f"Gate: nothing moved; {judged} checks{left}"


def to_lines(verdict: Verdict) -> list[str]:
    """The headline, a line for each check that moved or was not judged, and what to do."""
    others = [check for check in verdict.checks if check.state != "ok"]
    lines = [headline(verdict), *(f"  {check.state}: {_line(check)}" for check in others)]
    return [*lines, *(f"  {text}" for text in _advice(verdict))]


def to_markdown(verdict: Verdict) -> str:
    """A summary for a pull request: headline, what to do, what is wrong, and all checks folded away."""
    wrong = [check for check in verdict.checks if check.state in ("drift", "unusable")]
    parts = [f"### {escape(headline(verdict))}", "", *(f"{text}\n" for text in _advice(verdict))]
    if wrong:
        parts += [*_table(wrong), ""]
    parts += [f"<details><summary>All {len(verdict.checks)} checks</summary>", "", *_table(verdict.checks), ""]
    return "\n".join([*parts, "</details>", ""])


def to_junit(verdict: Verdict) -> str:
    """JUnit XML: a suite for each model, a case for each check; drift is a failure, unusable an error."""
    root = XML.Element("testsuites", name="trilemma-bench gate")
    for model in dict.fromkeys(check.model for check in verdict.checks):
        checks = [check for check in verdict.checks if check.model == model]
        count = lambda state, of=checks: str(sum(check.state == state for check in of))  # noqa: E731
        suite = XML.SubElement(
            root, "testsuite", name=printable(model), tests=str(len(checks)), failures=count("drift"),
            errors=count("unusable"), skipped=count("not judged"),
        )  # fmt: skip
        for check in checks:
            name = printable(f"{check.stage}: {check.what}")
            case = XML.SubElement(suite, "testcase", classname=printable(f"{model}.{check.protocol}"), name=name)
            tag = {"drift": "failure", "unusable": "error", "not judged": "skipped"}.get(check.state)
            if tag is not None:
                XML.SubElement(case, tag, message=printable(_line(check)))
    XML.indent(root)
    return XML.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_annotations(verdict: Verdict) -> list[str]:
    """GitHub's workflow commands, one for each check that is not well."""
    return [
        f"::error title={_property(f'trilemma-bench gate, {check.stage}')}::{_data(_line(check))}"
        for check in verdict.checks
        if check.state in ("drift", "unusable")
    ]


def _line(check: Check) -> str:
    """The check in one line; what comes from outside stays on it."""
    text = f"{check.model} ({check.protocol}), {check.stage}, {check.what}: {check.message}"
    if check.expected or check.found:
        text += f" [expected {check.expected or '–'}, found {check.found or '–'}]"
    return printable(text)


def _advice(verdict: Verdict) -> list[str]:
    found = [ADVICE[stage] for stage in verdict.stages]
    return [*found, REMAKE] if found else []


def _table(checks: Sequence[Check]) -> list[str]:
    lines = ["| model | stage | what | expected | found | verdict |", "| :-- | :-- | :-- | --: | --: | :-- |"]
    for check in checks:
        cells = (check.model, check.stage, check.what, check.expected or "–", check.found or "–")
        verdict = f"{_MARKS[check.state]}: {escape(check.message)}"
        lines.append(f"| {' | '.join(escape(cell) for cell in cells)} | {verdict} |")
    return lines


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
