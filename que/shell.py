"""The que's prompt: every verb of the command line, with tab completion, and `quit`."""

import cmd
import readline
import shlex
import sys

from que import cli
from que.errors import Mistake
from que.job import SHORT, STATES, TRASH
from que.store import Store


class Shell(cmd.Cmd):
    intro = "Type help for the verbs, VERB -h for one of them, quit to leave."
    prompt = "(que) "

    def __init__(self, store: Store):
        super().__init__()
        self.store = store
        self.parsers = next(cli._subparsers(cli.parser()))
        cli.add_create_options(self.parsers["create"])

    def preloop(self) -> None:
        """A word ends at a space: otherwise what is completed in --json would be `json`."""
        readline.set_completer_delims(" \t\n")

    def onecmd(self, line: str) -> bool:
        """One line; a mistake in it costs nothing but its message. True ends the shell."""
        try:
            words = shlex.split(line)
            if line == "EOF" or words[:1] in (["quit"], ["exit"]):
                return True
            if words[:1] in (["help"], ["?"]):
                words = [*words[1:2], "--help"]
            if words and words != ["shell"]:
                cli.run(words)
        except Mistake as error:
            print(f"error: {error}", file=sys.stderr)
        except ValueError as error:  # of shlex: a quote without its end
            print(f"error: this line cannot be read: {error}", file=sys.stderr)
        except (SystemExit, KeyboardInterrupt):  # argparse has said what is wrong; Ctrl-C ends a log, not the shell
            print(file=sys.stderr)
        return False

    def completenames(self, text: str, *ignored: object) -> list[str]:
        return [name for name in self.parsers if name.startswith(text)]

    def completedefault(self, text: str, line: str, begin: int, end: int) -> list[str]:
        """Options of the verb, locations with their short forms, ids."""
        verb = line.split()[0]
        if text.startswith("-"):
            actions = self.parsers[verb]._actions if verb in self.parsers else []
            found = [word for action in actions for word in action.option_strings]
        else:
            ids = [job.id for job in self.store.jobs()] if text.startswith("j") else []
            found = [*STATES, TRASH, *SHORT, *ids]
            found += ["start", "stop", "status"] if verb == "daemon" else []
        return [word for word in found if word.startswith(text)]
