import collections
import pathlib

requests, sizes = collections.Counter(), collections.Counter()
for line in pathlib.Path("/tests/access.log").read_text().splitlines():
    _, path, status, size = line.split()
    if status == "200":
        requests[path] += 1
        sizes[path] += int(size)
expected = [f"{p},{requests[p]},{sizes[p]}" for p in sorted(sizes, key=lambda p: (-sizes[p], p))]
assert pathlib.Path("/app/report.csv").read_text().split() == expected
