"""A record of `peers.py` as a Markdown table and as a plot."""

from xml.sax.saxutils import escape

RATIO = "PACE by the better llama.cpp"
COLOURS = ["#2563eb", "#d97706", "#f59e0b", "#dc2626", "#6b7280"]


def names(record):
    """Peers, in the order of their first row."""
    found = []
    for row in record["rows"]:
        found += [result["peer"] for result in row["results"] if result["peer"] not in found]
    return found


def best_of_llama_cpp(results):
    """llama.cpp with flash attention and without counts once: by the better one."""
    own = [result for result in results if result["peer"].startswith("llama.cpp")]
    return max(own, key=lambda result: result["median"], default=None)


def markdown(record):
    peers = names(record)
    machine = record["machine"]
    compared = "PACE" in peers and any(peer.startswith("llama.cpp") for peer in peers)
    versions = ", ".join(text for name, text in machine["versions"].items() if text)
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, medians of {machine['rounds']} rounds; {versions}. "
        "Tokens per second of the whole batch, with the peak of memory in GiB; "
        "weights and activations in bf16 where nothing else is said.",
        "",
        "| test | " + " | ".join(peers) + (f" | {RATIO} |" if compared else " |"),
        "|---|" + "---:|" * (len(peers) + compared),
    ]
    for row in record["rows"]:
        cells = [row["title"]]
        for peer in peers:
            result = next((r for r in row["results"] if r["peer"] == peer), None)
            cells.append("" if result is None else cell(result))
        if compared:
            best = best_of_llama_cpp(row["results"])
            cells.append(f"{best['pace_ratio']:.2f}" if best and best["pace_ratio"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(result):
    form = "" if result["format"] == "bf16" else f" {result['format']}"
    return f"{result['median']:.2f}{form} ({result['peak_bytes'] / 2**30:.1f})"


def svg(record):
    """Bars for each test: tokens per second of each peer by those of PACE, or of the fastest where PACE is missing."""
    peers, rows = names(record), [row for row in record["rows"] if row["results"]]
    bar, gap, left, width = 16, 22, 250, 420
    heights = [bar * len(row["results"]) + gap for row in rows]
    bottom = 60 + sum(heights)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 130}" height="{bottom + 30}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="12" y="22" font-size="15">Tokens per second, by those of PACE</text>',
    ]
    for i, peer in enumerate(peers):
        x = 12 + i * 140
        out.append(f'<rect x="{x}" y="32" width="12" height="12" fill="{COLOURS[i % len(COLOURS)]}"/>')
        out.append(f'<text x="{x + 18}" y="42">{escape(peer)}</text>')
    longest = max((max(ratios(row)) for row in rows), default=1.0)
    y = 60
    for row, height in zip(rows, heights):
        out.append(f'<text x="12" y="{y + bar}">{escape(row["title"])}</text>')
        for i, (result, ratio) in enumerate(zip(row["results"], ratios(row))):
            top, length = y + i * bar, width * ratio / longest
            colour = COLOURS[peers.index(result["peer"]) % len(COLOURS)]
            out.append(f'<rect x="{left}" y="{top + 2}" width="{length:.1f}" height="{bar - 3}" fill="{colour}"/>')
            text = f"{result['median']:.1f} t/s"
            out.append(f'<text x="{left + length + 6:.1f}" y="{top + bar - 4}" font-size="11">{text}</text>')
        y += height
    out.append("</svg>")
    return "\n".join(out) + "\n"


def ratios(row):
    medians = {result["peer"]: result["median"] for result in row["results"]}
    unit = medians.get("PACE", max(medians.values()))
    return [median / unit for median in medians.values()]
