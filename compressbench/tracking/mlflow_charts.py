"""Prepares MLflow's own charts of the trials of a sweep, as a saved view of the experiment page.

The format is undocumented and works in MLflow 3.15 to 3.18: the experiment tag
`mlflow.sharedViewState.KEY` holds JSON whose `state` is the compressed state of the page. A version
that does not support it opens the page without charts; nothing else depends on it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

from compressbench.core.digests import digest

TAG_PREFIX = "mlflow.sharedViewState."
_MOST_RUNS = 500  # the most that MLflow's charts offer


def view_key(sweep: str) -> str:
    """The key of the saved view of a sweep."""
    return digest([sweep])


def view_tag(
    sweep: str, name: str, parent: str, axes: tuple[str, str], params: Sequence[str], time_ms: int
) -> tuple[str, str]:
    """Key and value of the tag for a scatter chart and a parallel coordinates chart of the trials.

    Args:
        sweep: Identifier of the sweep.
        name: Name of the view.
        parent: MLflow run of the sweep.
        axes: Metrics on the x and y axes.
        params: Settings to show, by their names in MLflow.
        time_ms: Creation time, Unix time in milliseconds.
    """
    state = json.dumps(_page(sweep, parent, axes, params), separators=(",", ":"))
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
    value = {"name": name, "createdAt": time_ms, "updatedAt": time_ms, "state": packed}
    return TAG_PREFIX + view_key(sweep), json.dumps(value)


def _page(sweep: str, parent: str, axes: tuple[str, str], params: Sequence[str]) -> dict[str, Any]:
    section, x, y = f"{view_key(sweep)[:8]}-front", *axes
    shared = {
        "runsCountToCompare": _MOST_RUNS,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
    }
    scatter = {
        "uuid": f"{section}-scatter",
        "type": "SCATTER",
        "displayName": f"{y} over {x}",
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
    }
    parallel = {
        "uuid": f"{section}-parallel",
        "type": "PARALLEL",
        "displayName": "Settings and figures of all trials",
        "selectedParams": list(params),
        "selectedMetrics": [x, y],
        "showAllRuns": True,
    }
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": f"metrics.`{y}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{y}`", f"metrics.`{x}`", "tags.`pareto`"],
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": False,
        "globalLineChartConfig": {
            "xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": "",
        },
        "compareRunCharts": [scatter | shared, parallel | shared],
        "compareRunSections": [
            {"uuid": section, "name": "Front", "display": True, "isReordered": True,
             "deleted": False, "isGenerated": False}
        ],
    }  # fmt: skip
