"""The mock, which fails where a request's `user` member says `pace-fail-KIND`.

500     answers with that status
close   closes the connection without an answer
cut     closes it in the middle of a stream
"""

from __future__ import annotations

import re
import sys

from tests.bench.mock_upstream import Mock, main, pieces_of

FAIL = re.compile(rb'"user":\s?"pace-fail-(\w+)"')
ERROR = b'{"error": {"message": "A fault of the mock.", "type": "server_error"}}'
HEAD = b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\n"
FAULT = b"%bcontent-length: %d\r\n\r\n%b" % (HEAD, len(ERROR), ERROR)
BEFORE_CUT = 5


class FailingMock(Mock):
    def _serve(self, body: bytes) -> None:
        found = FAIL.search(body)
        if found is None:
            super()._serve(body)
        elif found[1] == b"500":
            self._transport.write(FAULT)
        else:
            if found[1] == b"cut":
                self._transport.write(b"".join(pieces_of(False, BEFORE_CUT)[:-1]))
            self._transport.close()


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(main(FailingMock)))
