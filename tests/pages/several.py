"""Run several pieces of Python, given as a list in JSON, as if each were alone: the SDKs that they
import take long to load, once is enough.
"""

import io
import sys
from contextlib import redirect_stdout

import orjson

said = []
for code in orjson.loads(sys.argv[1]):
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, {"__name__": "__main__"})
    said.append(out.getvalue())
print(orjson.dumps(said).decode())
