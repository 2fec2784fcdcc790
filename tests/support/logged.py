"""Processes beside a test, whose output is printed where the test fails."""

from typing import IO, Any


class Logged:
    """A *process* that ends with the block whatever it does; what it writes goes to *log*."""

    process: Any
    log: IO[str]

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if error[0] is not None:
            print(self.text())
        self.log.close()

    def text(self) -> str:
        """Return what the process has written so far."""
        self.log.seek(0)
        return self.log.read()
