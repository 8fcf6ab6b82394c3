"""Lines of code per part, against the ceilings agreed in advance. `make size` prints the table."""

from pathlib import Path

from tools.nvcc import ROOT

# part -> (ceiling of the whole, folders)
PARTS = {
    "csrc": (8000, ["csrc"]),
    "l4kernels": (7000, ["l4kernels"]),
    "emulator": (7000, ["emulator"]),
    "bench and tools": (3000, ["bench", "tools"]),
}
SUFFIXES = {".py", ".h", ".cuh", ".cu", ".cpp"}


def files(folders: list[str]) -> list[Path]:
    """Sources of the given folders; the emulator's own tests count as tests."""
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    return sorted(p for p in found if "tests" not in p.relative_to(ROOT).parts)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def cap(path: Path) -> int:
    """The longest a file may be: what can be read in one sitting."""
    device = path.suffix == ".cuh" or "emulator" in path.relative_to(ROOT).parts
    return 500 if device else 400


def main() -> None:
    for part, (ceiling, folders) in PARTS.items():
        counts = {p: lines(p) for p in files(folders)}
        longest = max(counts, key=counts.__getitem__, default=None)
        where = f"longest {longest.relative_to(ROOT)} {counts[longest]}" if longest else ""
        print(f"{part:16s} {sum(counts.values()):6d} of {ceiling}   {len(counts)} files, {where}")


if __name__ == "__main__":
    main()
