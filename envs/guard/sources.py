"""Where a solution could be taken from: does a URL, a package or a search name a forbidden source?"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

from rlframe.task_rules import EVERY_HOST

SHADOWED = {
    "pytest", "py.test", "python", "python3", "bash", "sh", "diff", "git", "time", "timeout", "make", "uv",
    "uvx", "node", "npm", "date", "nproc", "cmp", "nvidia-smi", "curl", "cargo", "go",
}  # fmt: skip
"""What graders call: nothing may stand in their place."""
LOCAL = re.compile(
    r"^(localhost|127\.|0\.0\.0\.0|\[?::1|host\.docker\.internal|10\.|192\.168\.)", re.I
)
CODE_HOSTS = re.compile(
    r"(^|\.)(github\.com|githubusercontent\.com|gitlab\.\w+|bitbucket\.org|codeberg\.org|sourceforge\.net|"
    r"sr\.ht|jsdelivr\.net|githack\.com|ghproxy\.\w+|grep\.app|sourcegraph\.com|gitee\.com|"
    r"softwareheritage\.org|debian\.(org|net)|launchpad\.net|fedoraproject\.org|archive\.org)$",
    re.I,
)
BENCHMARKS = re.compile(
    r"terminal-?bench|swe-?bench|swe-?gym|swe-?smith|sci-?code|human-?eval|live-?code-?bench|commit-?0|nl2repo|"
    r"impossible-?bench|kernel-?bench|mle-?bench|harbor-datasets|repo-?bench|harbor-framework|harborframework|laude-institute|aider-polyglot|big-?code-?bench",
    re.I,
)
MODELS = re.compile(
    r"/v1/(chat/completions|completions|messages|responses|models)|api\.(openai|anthropic|mistral|deepseek|x|together|groq)\.|"
    r"openrouter\.ai|generativelanguage\.googleapis|chatgpt\.com|claude\.ai|huggingface\.co/api|ollama",
    re.I,
)
INDEXES = (
    "pypi.org",
    "*.pypi.org",
    "*.pythonhosted.org",
    "crates.io",
    "*.crates.io",
    "registry.npmjs.org",
    "rubygems.org",
    "proxy.golang.org",
    "*.anaconda.org",
    "*.debian.org",
    "*.ubuntu.com",
)
"""What `package index` stands for."""


@dataclass(frozen=True, slots=True)
class Sources:
    """A task's `forbidden_sources` and `network`, taken apart."""

    repositories: tuple[str, ...]
    """`owner/name`, lower case."""
    prefixes: tuple[str, ...]
    """Hosts and beginnings of URLs."""
    packages: tuple[str, ...]
    network: tuple[str, ...]
    git_future: bool
    git_history: bool

    @classmethod
    def of(cls, forbidden: Iterable[str], network: tuple[str, ...]) -> Sources:
        repositories, prefixes, packages, git = [], [], [], set()
        for source in forbidden:
            text = source.strip().lower()
            if text.startswith("git:"):
                git.add(text)
            elif found := re.search(
                r"(?:github|gitlab|bitbucket)\.\w+[/:]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", text
            ):
                repositories.append(found[1])
            elif "." in text or "/" in text:
                prefixes.append(re.sub(r"^\w+://", "", text).rstrip("/"))
            else:
                packages.append(_normal(text))
        return cls(
            tuple(repositories),
            tuple(prefixes),
            tuple(packages),
            network,
            bool(git),
            "git:history" in git,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What the target is called: packages, and repositories without their owner."""
        return tuple(
            dict.fromkeys([*self.packages, *(_normal(r.split("/")[1]) for r in self.repositories)])
        )

    def contact(self, target: str) -> tuple[str, bool] | None:
        """Why it is not to be asked, and whether that is certain; None where nothing speaks against it."""
        text = urllib.parse.unquote(target).lower()
        host = host_of(text)
        for repository in self.repositories:
            if repository in text or repository.replace("/", "%2f") in text:
                return f"{repository} has the solution", True
        for prefix in self.prefixes:
            if prefix in text:
                return f"{prefix} is forbidden", True
        if LOCAL.match(host):
            return None
        if BENCHMARKS.search(text):
            return "the benchmark's own material", True
        words = set(re.split(r"[^\w-]+", text)) | set(re.split(r"[^a-z0-9]+", text))
        named = [n for n in self.names if n in words or n.replace("-", "_") in words]
        if named and (CODE_HOSTS.search(host) or _is_index(host) or "wildcard" in host or not host):
            return f"{named[0]} from {host or 'elsewhere'}", False
        if (
            host
            and EVERY_HOST not in self.network
            and not any(fnmatch(host, n) for n in self.network)
        ):
            return f"{host} is not among the hosts that the task allows", False
        return None

    def package(self, name: str) -> bool:
        """Whether it is the target itself (not the checkout at hand: `.`, `-e .`)."""
        bare = re.split(r"[=<>!~\[@; ]", name.strip())[0]
        if not bare or bare.startswith((".", "/", "-")):
            return False
        if BENCHMARKS.search(bare):
            return True
        return (
            _normal(re.sub(r"^python3?-|^py-|^lib", "", bare.lower())) in self.names
            or _normal(bare) in self.names
        )

    def installed(self, path: str) -> bool:
        """Whether a path is an installed or cached copy of the target, or compiled code of it."""
        text = path.lower()
        for name in self.names:
            form = re.escape(name).replace(r"\-", "[-_.]").replace("_", "[-_.]")
            if re.search(
                rf"((site|dist)-packages|node_modules|gems|registry/src/[^/]+)/[^/]*{form}", text
            ):
                return True
            if self.git_history and re.search(r"(site|dist)-packages/?$", text):
                return True
            if re.search(rf"{form}[^/]*\.(whl|tar\.gz|zip|egg|conda|tar\.bz2)", text):
                return True
            if self.git_history and re.search(r"__pycache__|\.pyc", text):
                return True
        return bool(self.packages and re.search(r"\.cache/(pip|uv)|pip/cache|/pkgs/", text))

    def query(self, text: str) -> str:
        """Why a search is after the solution."""
        lowered = text.lower()
        if BENCHMARKS.search(lowered):
            return "searches the benchmark's material"
        named = [n for n in self.names if re.search(rf"\b{re.escape(n)}\b", lowered)]
        wanted = re.search(
            r"source|github|fix|patch|pull|\bpr\b|commit|#\d+|issue|implementation|solution|diff",
            lowered,
        )
        if named and wanted:
            return f"searches for the solution of {named[0]}"
        return ""


def host_of(target: str) -> str:
    """Of a URL, of `user@host:path`, of `host/path`; a wildcard for the host is `wildcard`."""
    rest = re.sub(r"^[\w+]+://", "", target)
    rest = re.sub(r"^[^/@]*@", "", rest)
    host = re.split(r"[/:?#]", rest)[0]
    return "wildcard" if "*" in host or "\ue003" in host else host


def _is_index(host: str) -> bool:
    return any(fnmatch(host, n) for n in INDEXES)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip().lower())
