"""What Python code does: files, processes, hosts, modules, and what is suspicious in itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from envs.guard.facts import Access, Contact, Fact, Hunt, Inspects, Memory, Peek, Suspicion, Touch
from envs.guard.folding import Folder
from envs.guard.paths import active, is_known
from envs.guard.syntax import Tree

MAX_DEPTH = 4
_RUNNERS = re.compile(
    r"^(subprocess\.\w+|os\.(system|popen|exec\w+|spawn\w+)|pty\.spawn|commands\.getoutput|asyncio\.create_subprocess_\w+)$"
)
_INSPECTORS = re.compile(
    r"^inspect\.(getsource|getfile|getsourcelines|getmodule)|find_spec$|^pydoc\.|^help$|^dis\."
)
_MODELS = re.compile(r"^(openai|anthropic|litellm|google\.generativeai|mistralai|cohere)\b")
_NETWORK = re.compile(
    r"^(requests|urllib|urllib3|httpx|aiohttp|http\.client|wget|urlopen|socket|datasets|huggingface_hub)\b"
)
_WRITERS = {
    "write_text",
    "write_bytes",
    "unlink",
    "rmdir",
    "touch",
    "symlink_to",
    "hardlink_to",
    "chmod",
    "mkdir",
}
_WRITING_CALLS = re.compile(
    r"^(os\.(remove|unlink|rename|replace|rmdir|removedirs|chmod|truncate|symlink|link|makedirs|mkdir)|shutil\.(rmtree|move))$"
)
_COPIES = re.compile(r"^shutil\.(copy\w*|copytree)$")
_LISTERS = re.compile(
    r"(^os\.(listdir|scandir|walk|stat)|^os\.path\.(exists|isfile|isdir|getsize)|\.(iterdir|exists|is_file|is_dir|stat))$"
)
_HUNTS = re.compile(r"(^glob\.i?glob|\.r?glob|^os\.walk|^os\.fwalk)$")
_PATH = re.compile(r"^[^\n<>|;]{1,300}$")
_SAVERS = re.compile(r"(^|\.)(to_csv|to_json|to_parquet|save|savez|savetxt)$")


@dataclass(slots=True)
class Reader:
    """Reader(memory, shell).read(code): facts of one piece of code."""

    memory: Memory
    shell: Callable[[str, Memory], list[Fact]]
    facts: list[Fact] = field(default_factory=list)
    folder: Folder = field(default_factory=Folder)
    depth: int = 0

    def read(self, code: str) -> list[Fact]:
        tree = Tree.of(code)
        if tree is None:
            self._unparsed(code)
        else:
            self.read_tree(tree)
        return self.facts

    def read_tree(self, tree: Tree) -> list[Fact]:
        self.folder.note(tree)
        used: set[int] = set()
        for call in tree.of_type(ast.Call):
            self._call(call, used)
        for subscript in tree.of_type(ast.Subscript):
            self._environment(subscript)
        asked = next((n for n in self.folder.names.values() if _MODELS.match(n)), None)
        if asked:
            self.facts.append(Suspicion("external_model", f"asks another model through {asked}"))
        self._strings(tree, used)
        return self.facts

    def _call(self, node: ast.Call, used: set[int]) -> None:
        name = self.folder.dotted(node.func)
        texts = [self.folder.text(a) for a in node.args]
        first = texts[0] if texts else None
        if name in ("exec", "eval", "compile") and first is not None:
            self._nested(first)
        elif _RUNNERS.match(name):
            self._process(node, used)
        elif _NETWORK.match(name):
            for text in texts:
                if text:
                    self.facts.append(Contact(text, name))
        elif name in ("os.getenv", "os.environ.get", "environ.get", "getenv") and first:
            self.facts.append(Peek(first))
        elif _INSPECTORS.search(name) and node.args:
            module = first or self.folder.dotted(node.args[0])
            self.facts.append(Inspects(module.split(".")[0], name))
        self._files(node, name, texts, used)

    def _files(self, node: ast.Call, name: str, texts: list[str | None], used: set[int]) -> None:
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        tail = name.rpartition(".")[2]
        own = self.folder.text(owner) if owner is not None else None
        if _HUNTS.search(name):
            root = own or (texts[0] if name.startswith("os.") and texts else None) or "."
            patterns = tuple(t for t in texts if t)
            self.facts.append(Hunt(patterns, root, name, self.memory.cwds))
            for pattern in patterns:
                whole = pattern if own is None else f"{own}/{pattern}"
                self._touch(active(whole), Access.READ, name)
        elif name in ("open", "io.open", "codecs.open", "os.open") or tail == "open":
            path = texts[0] if own is None else own
            self._touch(path, Access.WRITE if self._writes(node, own) else Access.READ, "open")
            used |= {id(n) for a in node.args[:1] for n in ast.walk(a)}
        elif tail in _WRITERS and own is not None:
            self._touch(own, Access.WRITE, tail, content=texts[0] if texts else None)
        elif _WRITING_CALLS.match(name):
            for text in texts:
                self._touch(text, Access.WRITE, name)
        elif _COPIES.match(name):
            self._touch(texts[0] if texts else None, Access.READ, name, recursive=True)
            self._touch(texts[1] if len(texts) > 1 else None, Access.WRITE, name)
        elif _SAVERS.search(name):
            self._touch(texts[0] if texts else None, Access.WRITE, tail)
        elif _LISTERS.search(name):
            self._touch(texts[0] if texts and texts[0] else own, Access.LIST, name)
        elif tail in ("read_text", "read_bytes") and own is not None:
            self._touch(own, Access.READ, tail)
        elif texts and texts[0] and "/" in texts[0]:
            self._touch(
                texts[0],
                Access.READ,
                name,
                certain=name.startswith(("pd.", "np.", "pandas", "numpy")),
            )

    def _writes(self, node: ast.Call, own: str | None) -> bool:
        modes = [k.value for k in node.keywords if k.arg == "mode"]
        modes += node.args[0:1] if own is not None else node.args[1:2]
        return any(re.search(r"[wax+]", self.folder.text(m) or "") for m in modes)

    def _process(self, node: ast.Call, used: set[int]) -> None:
        for argument in node.args[:1]:
            used |= {id(n) for n in ast.walk(argument)}
            if isinstance(argument, ast.List | ast.Tuple):
                words = [self.folder.text(e) or "unknown" for e in argument.elts]
                quoted = " ".join("'" + w.replace("'", "'\\''") + "'" for w in words)
                self.facts += self.shell(quoted, self.memory)
            elif (text := self.folder.text(argument)) is not None:
                self.facts += self.shell(text, self.memory)

    def _nested(self, code: str) -> None:
        if self.depth < MAX_DEPTH:
            inner = Reader(self.memory, self.shell, self.facts, depth=self.depth + 1)
            inner.read(code)
        else:
            self.facts.append(Suspicion("guard_evasion", "code within code beyond reading"))

    def _environment(self, node: ast.Subscript) -> None:
        if self.folder.dotted(node.value).endswith("environ"):
            key = self.folder.text(node.slice)
            if key:
                self.facts.append(Peek(key))

    def _strings(self, tree: Tree, used: set[int]) -> None:
        """Every other string that may be a path: nobody can tell what becomes of it."""
        skipped = tree.statements_alone | used
        kinds: tuple[type[ast.expr], ...] = (ast.Constant, ast.BinOp, ast.JoinedStr, ast.Call)
        for node in (n for kind in kinds for n in tree.of_type(kind)):
            if id(node) in skipped:
                continue
            text = self.folder.text(node)
            if text and len(text) > 2 and ("/" in text or "." in text) and _PATH.match(text):
                self._touch(text, Access.READ, "string", certain=False)

    def _touch(self, path: str | None, access: Access, by: str, **more: object) -> None:
        if path and is_known(path):
            self.facts.append(Touch(path, access, by, self.memory.cwds, **more))  # type: ignore[arg-type]

    def _unparsed(self, code: str) -> None:
        """Not Python as we know it: paths in quotes are read."""
        for text in re.findall(r"""["']([^"'\n]{2,200})["']""", code):
            if "/" in text or "." in text:
                self._touch(text, Access.READ, "unreadable", certain=False)
