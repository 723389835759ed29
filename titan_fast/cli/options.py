"""Values of options that click does not know."""

from __future__ import annotations

from typing import Any

import click

from titan_fast.model.units import parse_duration


class DurationType(click.ParamType[float]):
    """``90``, ``5m``, ``1h30m``: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
