"""Names of classes that formulas, tables, pages and terminals could take for something else."""

ODD_NAMES = [
    "$x$", r"$\frac{", "50 % $", "a,b", '"quoted"', "two\nlines", "car\rriage", "=1+1", "+1", "-1",
    "@sum", "_hidden", "[red]", "a|b", "<script>alert(1)</script>", " blank", "a\ttab", "'", "\\",
    "x" * 300, "a\u2028b", "{}", "%s", "ü", "null",
]  # fmt: skip
