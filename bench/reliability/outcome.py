"""What a scenario sent, what happened, and its verdict."""

import time

PASS, FAIL, LIMIT, UNAVAILABLE = "PASS", "FAIL", "LIMIT", "UNAVAILABLE"


class Unavailable(Exception):
    """This machine cannot run the scenario."""


class Outcome:
    """Prints the events of one scenario, and collects its failed checks and its limits."""

    def __init__(self, name):
        self.name = name
        self.failures = []
        self.limits = []
        self.began = time.monotonic()
        print(f"=== {name}", flush=True)

    def threw(self, text):
        """Says what is sent or done to the program."""
        self._print("threw", text)

    def saw(self, text):
        """Says what happened, without a judgment."""
        self._print("saw", text)

    def check(self, is_right, text):
        """Says what happened. The scenario fails unless `is_right`. Returns `is_right`."""
        self._print("ok" if is_right else "WRONG", text)
        if not is_right:
            self.failures.append(text)
        return is_right

    def limit(self, text):
        """Says what happened, where it is a limit of the program that its documentation should name."""
        self._print("limit", text)
        self.limits.append(text)

    def end(self):
        """Prints the verdict with its reason, and returns it."""
        if self.failures:
            verdict, reason = FAIL, f"{len(self.failures)} wrong: {self.failures[0]}"
        elif self.limits:
            verdict, reason = LIMIT, self.limits[0]
        else:
            verdict, reason = PASS, "everything was as expected"
        print(f"{verdict} {self.name} ({time.monotonic() - self.began:.0f} s): {reason}\n", flush=True)
        return verdict

    def unavailable(self, reason):
        """Ends a scenario that cannot run here."""
        print(f"{UNAVAILABLE} {self.name}: {reason}\n", flush=True)
        return UNAVAILABLE

    def _print(self, kind, text):
        print(f"{time.monotonic() - self.began:7.1f} s  {kind:5}  {text}", flush=True)
