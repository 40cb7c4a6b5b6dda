"""Write pairs.jsonl: questions about the Python standard library, answered by its docstrings.

Run with Python 3.11, whose docstrings these are: `python demo/training/dataset.py`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = 1050
LONGEST_ANSWER = 110
# No single module may crowd the others out; os alone has some 300 names.
MOST_PER_MODULE = 24
PAIRS = Path(__file__).with_name("pairs.jsonl")

# The best known first: the list is cut once it holds enough names.
MODULES = """
builtins os os.path re json math itertools collections pathlib shutil datetime random string
asyncio functools time sys subprocess threading logging argparse csv sqlite3 glob tempfile hashlib
base64
typing dataclasses enum abc contextlib copy decimal fractions statistics operator heapq bisect
io pickle zipfile tarfile gzip bz2 lzma zlib struct socket ssl select selectors signal queue
multiprocessing concurrent.futures urllib.parse urllib.request http.client http.server
email.message smtplib imaplib html html.parser xml.etree.ElementTree configparser tomllib
unittest unittest.mock doctest pdb timeit cProfile traceback warnings inspect ast dis
importlib importlib.metadata textwrap difflib pprint getpass platform locale gettext calendar
uuid secrets hmac array weakref types numbers cmath fnmatch fileinput filecmp stat shlex cmd
codecs unicodedata sched ipaddress socketserver mimetypes binascii tokenize keyword token
contextvars gc atexit errno resource pwd grp mmap zoneinfo graphlib linecache webbrowser
ftplib poplib xmlrpc.client plistlib netrc wave colorsys curses readline turtle runpy pkgutil
symtable compileall py_compile zipapp venv trace tracemalloc faulthandler site sysconfig code
codeop
""".split()  # noqa: SIM905
FAMOUS = """
os.listdir os.getcwd os.chdir os.mkdir os.makedirs os.remove os.rename os.getenv os.walk os.stat
os.system os.getpid os.path.join os.path.exists os.path.isdir os.path.isfile os.path.basename
os.path.dirname os.path.abspath os.path.getsize os.path.splitext re.compile re.search re.match
re.sub re.findall re.split re.escape json.dumps json.loads json.dump json.load math.sqrt
math.floor math.ceil math.gcd math.factorial math.log random.random random.randint random.choice
random.shuffle random.sample random.seed time.time time.sleep time.perf_counter asyncio.run
asyncio.sleep asyncio.gather asyncio.create_task asyncio.wait_for shutil.copy shutil.copytree
shutil.rmtree shutil.move shutil.which collections.OrderedDict collections.Counter
collections.deque functools.lru_cache functools.wraps functools.partial functools.cache
itertools.chain itertools.count itertools.product itertools.permutations subprocess.run
threading.Lock
""".split()  # noqa: SIM905
# Where the docstring's first sentence is too long to be asked for word by word.
OWN = {
    "json": "Encode and decode JSON (JavaScript Object Notation).",
    "json.dumps": "Serialize an object to a JSON formatted string.",
    "json.loads": "Turn a string that holds a JSON document into a Python object.",
    "pathlib": "Object-oriented filesystem paths.",
    "re.search": "Scan through a string, looking for a match to the pattern.",
    "re.sub": "Replace the matches of the pattern in a string by something else.",
    "itertools.chain": "Return the elements of several iterables one after the other.",
    "int": "Convert a number or string to an integer.",
}
# Classes whose methods are asked for too.
CLASSES = """
str list dict set tuple bytes int float pathlib.Path collections.Counter collections.deque
collections.OrderedDict datetime.datetime datetime.date datetime.timedelta threading.Thread
threading.Event subprocess.Popen random.Random argparse.ArgumentParser logging.Logger
sqlite3.Connection sqlite3.Cursor socket.socket asyncio.Queue asyncio.Task decimal.Decimal
fractions.Fraction zipfile.ZipFile tarfile.TarFile queue.Queue re.Pattern re.Match
concurrent.futures.Future concurrent.futures.Executor configparser.ConfigParser
unittest.TestCase string.Formatter io.StringIO csv.DictWriter http.client.HTTPConnection
""".split()  # noqa: SIM905


def first_sentence(text: str | None) -> str | None:
    """The first sentence of a docstring on one line, or None when it makes no good answer."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    # Many docstrings open with a signature in a paragraph of its own.
    if paragraphs and re.match(r"[\w.]+\([^\n]*\)( *->.*)?$", paragraphs[0]):
        paragraphs = paragraphs[1:]
    line = " ".join((paragraphs or [""])[0].split())
    sentence = re.split(r"(?<=[a-z0-9)'\"`\]])\.(?=\s|$)", line)[0].rstrip(" :;,.")
    sentence = sentence.replace("``", "").strip()
    clean = re.fullmatch(r"[A-Z][ -~]+", sentence) and not re.search(r"->|\w\(.*\) ?--", sentence)
    # "(e.g." and the like are no ends of sentences.
    if not clean or sentence.count("(") != sentence.count(")") or "e.g" in sentence:
        return None
    if not 12 <= len(sentence) < LONGEST_ANSWER or " " not in sentence:
        return None
    return f"{sentence}."


def members() -> Iterator[tuple[str, str, object]]:
    """(name, kind, object) of modules, their functions and classes, and the classes' methods."""
    for name in FAMOUS:
        module_name, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module_name), attribute)
        yield name, "class" if inspect.isclass(value) else "function", value
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield module_name, "module", module
        taken = 0
        for name in getattr(module, "__all__", None) or sorted(vars(module)):
            value = getattr(module, name, None)
            if name.startswith("_") or not _is_at_home(value, module_name):
                continue
            kind = "class" if inspect.isclass(value) else "function"
            if kind == "function" and not inspect.isroutine(value):
                continue
            if isinstance(value, type) and issubclass(value, BaseException):
                continue
            # The builtins need no prefix.
            dotted = name if module_name == "builtins" else f"{module_name}.{name}"
            known = dotted in OWN or first_sentence(inspect.getdoc(value))
            if known and dotted not in FAMOUS:
                taken += module_name != "builtins"
                if taken <= MOST_PER_MODULE:
                    yield dotted, kind, value
            if dotted in CLASSES:
                yield from _methods(dotted, value)


def _methods(class_name: str, value: object) -> Iterator[tuple[str, str, object]]:
    for name, method in vars(value).items():
        if not name.startswith("_") and (callable(method) or isinstance(method, classmethod)):
            yield f"{class_name}.{name}", "function", method


def _is_at_home(value: object, module_name: str) -> bool:
    """Whether `module_name` is where a reader looks for `value`, not a module importing it."""
    home = getattr(value, "__module__", None) or ""
    return (
        home not in sys.stdlib_module_names
        or home.startswith("_")
        or (home.split(".")[0] in {module_name.split(".")[0], "posix", "posixpath", "genericpath"})
    )


def pairs() -> list[dict[str, str]]:
    """An English and a Chinese pair for each name, in a fixed order."""
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for name, kind, value in members():
        answer = OWN.get(name) or first_sentence(inspect.getdoc(value))
        if answer is None or name in seen or len(seen) == NAMES:
            continue
        seen.add(name)
        for language, (question, reply) in {
            "en": (ENGLISH[kind], "{answer}"),
            "zh": CHINESE[kind],
        }.items():
            rows.append(
                {
                    "name": name,
                    "language": language,
                    "question": question.format(name=name),
                    "analysis": f"Look up {name}.",
                    "answer": reply.format(name=name, answer=answer),
                }
            )
    return rows


ENGLISH = {
    "module": "What is the {name} module for?",
    "class": "What is {name}?",
    "function": "What does {name} do?",
}
CHINESE = {
    "module": ("{name} 模块有什么用？", "{name} 模块的用途：{answer}"),
    "class": ("{name} 是什么？", "{name} 是一个类：{answer}"),
    "function": ("{name} 是做什么的？", "{name} 的作用：{answer}"),
}


if __name__ == "__main__":
    with PAIRS.open("w", encoding="utf-8") as file:
        for row in pairs():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
