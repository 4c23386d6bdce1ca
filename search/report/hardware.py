"""The report's words about the hardware models: what they were fitted to, and how far they are off."""

from collections.abc import Mapping
from html import escape

from search.report.data import Entry, ReportData, number
from search.report.html import Page, format_number
from search.report.scores import words


def hardware_of(data: ReportData, target: str) -> Entry:
    """Return a target's entry of hardware.json, empty where its costs are not predicted."""
    entry = (data.hardware.get("targets") or {}).get(target)
    return entry if isinstance(entry, Mapping) else {}


def add_hardware(page: Page, data: ReportData, target: str) -> None:
    """Say what predicted the costs on a target, on which device, from how many nets, and how well."""
    entry = hardware_of(data, target)
    probes = entry.get("probes") or []
    if not probes:
        return
    built = sum(probe.get("measured") is not None for probe in probes)
    device = f" on {entry['device']}" if entry.get("device") else ""
    settings = ", ".join(f"{key} {value}" for key, value in (entry.get("settings") or {}).items() if value is not None)
    lost = f"; {len(probes) - built} more could not be built" if built < len(probes) else ""
    errors = ", ".join(
        f"{words(metric)[0]} {format_number(error, 1, percent=True)}"
        for metric, error in (entry.get("errors") or {}).items()
        if number(error) is not None
    )
    text = f"Costs are predicted by a model fitted to {built} nets measured{device}"
    text += f" ({settings})" if settings else ""
    page.add(
        f"<p>{escape(text + lost)}. "
        f"Mean absolute error on nets left out of the fit: <b>{escape(errors or 'unknown')}</b>.</p>"
    )
