"""Lines, tokens and functions as `make size` and the house rules count them."""

import subprocess

import pytest

from tools.size import Size, main, room, rooms, size_of, sources, sources_at, table
from tools.source import Function, functions, tokens

PYTHON = '''"""Module."""

import os  # comment


class A:
    """Documented
    over two lines."""

    def f(self, x: int) -> str:
        """Doc."""
        # comment

        def inner():
            return f"{x:>{8}} {os.sep!r} {'}'}"

        return """two
        lines"""


async def g(): ...
'''

CPP = r"""// What it is.
#pragma once
#include <a/b.h>
#define L4K_TWICE(x) \
  { x; x; }
namespace l4k { namespace {
struct alignas(16) A : B {
  A(int n) : b{n}, c(n), d{{1}, {2}} {}
  bool operator()(int a) const { return a <= c; }
 public:
  int get() const
  {
    return 1'000;  // {
  }
  std::array<int, size(3)> b = {1, 2};
};
template <class T, bool kWide = (sizeof(T) > 4)>
__global__ void __launch_bounds__(128, 1) kernel(const T* p) {
  if (p) {
    struct Inner { int f() { return 1; } };
    asm volatile("{ mov.b32 %0, '{'; }" ::"n"(R"x({)")x"));
  }
}
enum class E : int { kOne };
auto Outer::Nested::make(int x) -> std::vector<std::vector<int>> {
  char brace = '{';
#if WIDE {
  /* {
   */
#endif
  return {{x}};
}
constexpr int kTable[] = {f(1), f(2)};
auto chosen = [](int x) { return x; };
}}  // namespace
extern "C" int c_function() { return 0; }
"""


def test_code_is_what_is_neither_blank_nor_documentation():
    found = [*tokens(".py", PYTHON)]
    strings = [t for t in found if t.text.startswith(('f"', '"'))]
    assert [(t.first, t.last) for t in strings] == [(15, 15), (17, 18)]
    assert " ".join(t.text for t in found if t not in strings) == (
        "import os class A : def f ( self , x : int ) -> str : "
        "def inner ( ) : return return async def g ( ) : ..."
    )
    # import, class, def, def, return, two lines of a string, async def
    assert size_of(".py", PYTHON).lines == 8
    assert size_of(".py", 'x = f"""{a}\n{f"{b}"}\n"""\n') == Size(1, 3, 3)
    assert size_of(".py", "# only\n\n") == size_of(".cu", "// only\n\n/* a\n b */\n") == Size(1)


@pytest.mark.parametrize(
    "text, count",
    [
        ("#include <cuda/std/array>", 2),
        ('#include "kernels/gemm/gemm.h"  // why', 2),
        ("#  pragma unroll", 2),
        ("std::max(a, b);", 9),
        ("x <<= 0x1.8p-3f; // y", 4),
        ("1'000'000ULL+.5e-3", 3),
        ("a->b ? c : d && !e", 10),
        ('asm volatile("a; // b" ::"r"(1));', 11),
        ("'\\'' + L'a' + \"\\\"//\"", 5),
        ('R"x(two\n")lines)x" s', 2),
        ("a /* b\n c */ d", 2),
        ("vector<vector<int>> v", 8),
        ("k<3>>1", 6),
    ],
)
def test_tokens_of_cpp(text, count):
    assert len(tokens(".cuh", text)) == count, [t.text for t in tokens(".cuh", text)]


def test_functions_of_python():
    assert functions(".py", PYTHON) == [
        Function("g", 21, 1),
        Function("f", 10, 8),
        Function("inner", 14, 2),
    ]


def test_functions_of_cpp():
    assert functions(".cuh", CPP) == [
        Function("L4K_TWICE", 4, 2),
        Function("A", 8, 1),
        Function("operator", 9, 1),
        Function("get", 11, 4),
        Function("kernel", 17, 7),
        Function("Outer::Nested::make", 25, 8),
        Function("chosen", 34, 1),
        Function("c_function", 36, 1),
    ]


@pytest.mark.parametrize("text", ["void f() {", "void f() { } }", "namespace a {"])
def test_braces_out_of_balance_are_an_error(text):
    with pytest.raises(ValueError, match="braces in balance"):
        functions(".h", text)


def test_rooms_are_two_levels_deep():
    paths = ("setup.py", "bench/rows.py", "csrc/tile/base.h", "csrc/kernels/gemm/gemm.cuh")
    assert [room(path) for path in paths] == [".", "bench", "csrc/tile", "csrc/kernels"]
    found = rooms({"a/b/c/x.py": "x = 1\n", "a/b/y.h": "int y;\n\nint z;\n", "a/z.py": "z\n"})
    assert found == {"a": Size(1, 1, 1), "a/b": Size(2, 3, 9)}
    assert found["a/b"].density == 3.0


def test_the_table_says_what_a_change_adds():
    now = {"a": Size(2, 10, 100), "new": Size(1, 1, 4)}
    before = {"a": Size(1, 8, 72), "gone": Size(3, 5, 5)}
    rows = [line.split() for line in table(now, before).splitlines()[1:]]
    assert rows == [
        ["a", "2", "10", "10.0", "+2", "+1.0"],
        ["gone", "0", "0", "0.0", "-5", "+0.0"],
        ["new", "1", "1", "4.0", "+1", "+0.0"],
        ["all", "3", "11", "9.5", "-2", "+3.5"],
    ]
    assert [line.split() for line in table(now).splitlines()[1:]] == [
        ["a", "2", "10", "10.0"],
        ["new", "1", "1", "4.0"],
        ["all", "3", "11", "9.5"],
    ]


def test_a_revision_is_read_from_git(tmp_path, monkeypatch, capsys):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("x = 1\n")
    (tmp_path / "a" / "x.txt").write_text("none")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "a" / "x.py").write_text("x = 1\ny = 2\n")
    for folder in ("build", ".hidden"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "made.py").write_text("made")
    monkeypatch.setattr("tools.size.ROOT", tmp_path)
    assert sources_at("HEAD") == {"a/x.py": "x = 1\n"}
    assert sources() == {"a/x.py": "x = 1\ny = 2\n"}
    monkeypatch.setattr("sys.argv", ["size", "HEAD"])
    main()
    assert capsys.readouterr().out.split()[-6:] == ["all", "1", "2", "3.0", "+1", "+0.0"]
    with pytest.raises(SystemExit, match="expected a git revision, got 'nothing'"):
        sources_at("nothing")
