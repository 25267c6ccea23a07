"""The group of the verbs, which turns errors into a text and an exit code, and the options that verbs share."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from jobs.core.plain import visible_lines
from orchestrator.cli.printing import echo
from orchestrator.system import terminal
from orchestrator.system.exit_codes import Exit

OUT, ERR = partial(echo, nl=False), partial(echo, nl=False, err=True)
"""Where what is printed on a cluster's head goes."""

SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as job.loss.temperature=0.07."
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

ADDRESS = click.option("--address", metavar="URL", help="Of a cluster's job server: do it there. http://HEAD:8265")

VARIABLES = click.option(
    "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Variable of the job's; no secrets."
)

ACCEPT = click.option(
    "--accept-code", is_flag=True, help="Continue a run that was begun with other code or versions, and record that."
)

DETACH = click.option("--detach", is_flag=True, help="Leave the job as soon as it is submitted.")


class _Group(click.Group):
    """Turns errors into one text and an exit code, in one place."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = visible_lines(error.message)  # final for click, and data of the user's
            raise
        except click.exceptions.Exit:
            raise
        except (KeyboardInterrupt, click.Abort):
            echo("interrupted", err=True)
            sys.exit(Exit.INTERRUPTED)
        except Exception as error:
            from orchestrator.system import exit_codes

            ended = exit_codes.ending(error)
            if ended is None:
                raise
            text, code = ended
            echo(f"error: {text}", err=True)
            sys.exit(code)


@click.group(cls=_Group)
@click.version_option(package_name="contrastive-orchestrator")
def main() -> None:
    """Answer whether A beats B: controlled comparisons of contrastive encoders. One file, one command, one answer.

    Exit codes: 0 done; 1 some trials failed, or verify found a fault; 2 bad sweep or usage; 3 another driver holds
    the run; 4 infrastructure missing; 75 the cluster died, run it again; 130 interrupted, resumable.
    """
    terminal.fill_descriptors()
