"""MLflow's own charts of a sweep's trials, prepared: a saved view of the experiment page.

Undocumented format of MLflow 3.15 to 3.18: the experiment tag `mlflow.sharedViewState.KEY` holds
JSON whose `state` is the page's state, deflated. Should a later MLflow not know it, its page opens
without charts; nothing else depends on it.
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
    return digest([sweep])


def view_tag(
    sweep: str, name: str, parent: str, axes: tuple[str, str], params: Sequence[str], time_ms: int
) -> tuple[str, str]:
    """Key and value of the tag: accuracy over size, and parallel coordinates of the trials.

    `parent` is the MLflow run of the sweep, `axes` the metrics across and up, `params` the settings
    by their names in MLflow.
    """
    state = json.dumps(_page(sweep, parent, axes, params), separators=(",", ":"))
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode(), 9)).decode()
    value = {"name": name, "createdAt": time_ms, "updatedAt": time_ms, "state": packed}
    return TAG_PREFIX + view_key(sweep), json.dumps(value)


def _page(sweep: str, parent: str, axes: tuple[str, str], params: Sequence[str]) -> dict[str, Any]:
    section, across, up = f"{view_key(sweep)[:8]}-front", *axes
    shared = {
        "runsCountToCompare": _MOST_RUNS,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
    }
    scatter = {
        "uuid": f"{section}-scatter",
        "type": "SCATTER",
        "displayName": f"{up} over {across}",
        "xaxis": {"key": across, "type": "METRIC"},
        "yaxis": {"key": up, "type": "METRIC"},
    }
    parallel = {
        "uuid": f"{section}-parallel",
        "type": "PARALLEL",
        "displayName": "Settings and figures of all trials",
        "selectedParams": list(params),
        "selectedMetrics": [across, up],
        "showAllRuns": True,
    }
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": f"metrics.`{up}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{up}`", f"metrics.`{across}`", "tags.`pareto`"],
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
