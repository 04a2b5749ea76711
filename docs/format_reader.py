"""Read nec stores of format versions 1 and 2: python docs/format_reader.py STORE [ARRAY]."""

# A reference for ports: the comments name, in quotes, the sections of docs/format.md.
# fmt: off
# ruff: noqa: B905, D101, D102, D103, E401, E731, I001, PLR0912, PLR0915
import base64, hashlib, json, math, struct, sys
from bisect import bisect_left, bisect_right
from ctypes import c_float
from functools import cache, reduce
from itertools import accumulate, pairwise, product
from pathlib import Path

MASK, REFINEMENTS, VERBATIM, PATCHES, CODES, SEGMENTS = range(6)  # parts of a chunk
MISSING = (65200, 49152, 32768, 16384, 336)  # frequency of "missing" by valid neighbours
RINGS = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 126)  # where rings of frequency end
TOTAL, LARGEST, DC, RESIDUAL = 1 << 16, 1 << 20, (0, 0), "residual"
CLASSES = [(4 + i % 4) << (i // 4 + 1) for i in range(40)]  # where classes from 1 on begin
CRC = [reduce(lambda crc, _: crc >> 1 ^ 0x82F63B78 * (crc & 1), range(8), i) for i in range(256)]

crc32c = lambda data: (0xFFFFFFFF ^ reduce(
    lambda crc, byte: crc >> 8 ^ CRC[(crc ^ byte) & 255], data, 0xFFFFFFFF)).to_bytes(4, "little")
numbers = lambda code, data: [number for (number,) in struct.iter_unpack("<" + code, data)]
float32 = lambda value: c_float(value).value  # to nearest, ties to even, overflow to infinity
clamp = lambda a, m: max(-m, min(a, m))
finer = lambda a, r: (a * 362 >> 8 if r & 1 else a) << (r >> 1)
refined = lambda a, r: clamp(finer(a, r), 1 << 31)
shift_of = lambda expected: max(expected.bit_length() - 13, 0)
class_of = lambda expected: bisect_right(CLASSES, expected >> shift_of(expected))
level_of = lambda code: [4 * (((8 + code % 8) << code // 8) >> 3), 4]  # 4 p + 1024 t, 4 + c
pair = lambda one, two: (two if one is None else one, one if two is None else two)
tile_of = lambda u, v: (max(u, v).bit_length(), u // 8, v // 8)  # the octave first
cosines = cache(lambda n: [[round(8192 * math.sqrt((2 if k else 1) / n) * math.cos(
    (2 * x + 1) * k * math.pi / (2 * n))) for x in range(n)] for k in range(n)])

def check(holds, what):
    if not holds:
        raise ValueError(what)

class Coding:  # "Configuration of the codec"
    def __init__(self, fields):
        check(fields["version"] in (1, 2), f"format version {fields['version']} is not known")
        digested = {k: v for k, v in fields.items() if k not in ("lagrangian", "min_cosine")}
        text = json.dumps(digested, sort_keys=True, separators=(",", ":"))
        self.digest = hashlib.sha256(text.encode()).digest()[:4]
        rows = lambda name, form: [*struct.iter_unpack("<" + form, base64.b64decode(fields[name]))]
        self.version, self.block = fields["version"], fields["block"]
        self.offsets = (0, *fields["offsets"])
        n, rings = fields["band_groups"][-1], bisect_left(RINGS, 2 * self.block - 2) + 1
        [self.steps], [self.mean] = rows("steps", f"{n}f"), rows("mean", f"{n}i")
        [self.weight], self.level = rows("weight", f"{n}B"), rows("level", f"{rings + 1}B")
        self.weights, self.flag_weights = rows("weights", "8B"), rows("flag_weights", "7B")
        self.flag_level = rows("flag_level", f"{self.block.bit_length()}B")
        self.flags = [[(0, f, TOTAL) for f in row] for row in rows("flags", "41H")]
        tables = [(0, *accumulate(row)) for row in rows("tables", "16H")]
        check(all(table[-1] == TOTAL for table in tables), "a table does not sum to 65536")
        self.dc_tables, self.tables = ([tables[t] for t in row] for row in rows("table_of", "41B"))
        if self.version == 2:  # "Codebook"
            [self.units], self.codebook = rows("units", f"{n}I"), rows("codebook", f"{n}b")
            self.counts = sum(rows("counts", "H"), ())
        groups = (pairwise((0, *fields[name])) for name in ("octave_groups", "band_groups"))
        self.segments = [(range(*octaves), range(*bands)) for octaves, bands in product(*groups)]

class Stream:  # "Streams"
    def __init__(self, data):
        size = len(data) if len(data) < 5 else 5 + (len(data) - 5) % 4
        self.state, self.words = int.from_bytes(data[:size], "big"), numbers("I", data[size:])[::-1]
    def symbol(self, starts):  # F of each symbol, then TOTAL
        s = bisect_right(starts, slot := self.state & 0xFFFF) - 1
        self.state = (starts[s + 1] - starts[s]) * (self.state >> 16) + slot - starts[s]
        if self.state < 1 << 31 and self.words:
            self.state = (self.state << 32) | self.words.pop()
        return s
    def bits(self, k):  # 16 at a time, the low ones first
        tables = [range(0, TOTAL + 1, TOTAL >> min(k - i, 16)) for i in range(0, k, 16)]
        return sum(self.symbol(table) << 16 * i for i, table in enumerate(tables))
    def gamma(self):
        length = self.bits(5)
        check(length <= 24, "a number is too long")
        return (1 << length) + self.bits(length)
    def value(self, tables, expected, largest):  # "Values": a signed value
        m, shift = self.symbol(tables[class_of(expected)]), shift_of(expected)
        m = ((14 + self.gamma() if m == 15 else m) << shift) | self.bits(shift)
        check(m <= largest, "a coefficient is too large")
        return -m if m and self.bits(1) else m

class Block:  # the box of a block's valid tokens (y, x), and what is decoded of it
    def __init__(self, tokens, coding):
        rows, columns = (range(min(at), max(at) + 1) for at in zip(*tokens))
        self.y, self.x, self.box = rows[0], columns[0], list(product(rows, columns))
        self.height, self.width = len(rows), len(columns)
        self.gain = math.isqrt((coding.block**2 << 16) // (self.height * self.width))
        self.refinement = self.code = 0
        self.verbatim, self.near, self.tiles = None, (None, None), {}
        for frequency in product(range(self.height), range(self.width)):
            self.tiles.setdefault(tile_of(*frequency), []).append(frequency)
        # By band: coefficients; magnitudes of oscillating ones and RESIDUAL, energies of tiles.
        self.symbols, self.seen = [{} for _ in coding.steps], [{} for _ in coding.steps]
    def expected(self, weights, band, key, lower, level):  # "What is expected"
        places = *((block, band) for block in self.near), (self, band - 1), (self, band - 2)
        seen = [block.seen[b].get(key, 0) if block and b >= 0 else None for block, b in places]
        seen = *pair(*seen[:2]), *lower, *pair(*seen[2:]), None
        own = refined(level[0] // level[1], self.refinement)
        return sum(w * (own if m is None else m << 10) for w, m in zip(weights, seen)) >> 6
    def read_dc(self, stream, coding, band, tile, levels, _):  # "Values"; returns what levels learn
        near, mean = [b for b in self.near if b], refined(coding.mean[band], self.refinement)
        d = sum(((b.symbols[band][DC] * b.gain + 128) >> 8) - mean for b in near)
        a = mean + (((2 * d if len(near) == 1 else d) * coding.weight[band] + 16) >> 5)
        predicted = clamp((256 * a + (self.gain >> 1)) // self.gain, LARGEST)
        level = levels[0 if near else -1]
        expected = self.expected(coding.weights[0], band, RESIDUAL, (0, 0, 0), level)
        residual = stream.value(coding.dc_tables, expected, 2 * LARGEST)
        check(abs(predicted + residual) <= LARGEST, "a coefficient is too large")
        self.symbols[band][DC], magnitude = predicted + residual, abs(residual)
        self.seen[band] |= {RESIDUAL: magnitude, tile: min(magnitude, 255)}
        return [(level, magnitude)]
    def read_tile(self, stream, coding, band, tile, levels, energies):  # "Values"; the same
        (octave, *_), (u, v), seen, found = tile, self.tiles[tile][0], self.seen[band], []
        lower = pair(seen.get(tile_of(u - 1, v)), seen.get(tile_of(u, v - 1)))
        expected = self.expected(coding.flag_weights[octave], band, tile, lower, energies[octave])
        held = stream.symbol(coding.flags[octave - 1][class_of(expected)])
        seen |= dict.fromkeys(self.tiles[tile], 0)
        for u, v in self.tiles[tile] if held else ():
            cycles = u * coding.block // self.height + v * coding.block // self.width
            ring = levels[bisect_left(RINGS, cycles)]
            lower = *pair(seen.get((u - 1, v)), seen.get((u, v - 1))), seen.get((u - 1, v - 1))
            expected = self.expected(coding.weights[octave], band, (u, v), lower, ring)
            q = stream.value(coding.tables, expected, LARGEST)
            self.symbols[band] |= {(u, v): q} if q else {}
            seen[u, v] = abs(q)
            found.append((ring, abs(q)))
        seen[tile] = min(sum(magnitude for _, magnitude in found), 255)
        return [*found, (energies[octave], seen[tile])]
    def transformed(self, band, offsets):  # "Values of a coded block", 1 to 4: z by y, x
        half, down, across = {}, cosines(self.height), cosines(self.width)
        for (u, v), q in self.symbols[band].items():
            c = 16 * q - (offsets[min(abs(q), 3)] * (1 if q > 0 else -1) if (u, v) != DC else 0)
            half[u] = [t + c * wave for t, wave in zip(half.get(u, [256] * self.width), across[v])]
        return [(16 + sum((t[x] >> 9) * down[u][y] for u, t in half.items())) >> 5
                for y, x in product(range(self.height), range(self.width))]

class Chunk:  # "Chunk"
    def __init__(self, data, coding, shape):
        shape = (*shape, 1, 1) if len(shape) == 2 else (*[1] * (4 - len(shape)), *shape)
        (samples, bands, height, width), self.shape, self.coding = shape, shape, coding
        check(data[0] == coding.version and data[1] < 16 * data[0], "a chunk of another version")
        check(data[2:6] == coding.digest, "the chunk is of another configuration")
        present, rest = [part for part in range(SEGMENTS) if data[1] >> part & 1], iter(data[6:])
        present += range(SEGMENTS, SEGMENTS + len(coding.segments))
        varint = lambda byte: byte & 127 | (varint(next(rest, 0)) << 7 if byte > 127 else 0)
        lengths = [varint(next(rest, 0)) for _ in present]
        head = data[:len(data) - len(list(rest))]
        bounds = [*accumulate(lengths, initial=len(head) + 4 * max(sum(map(bool, lengths)), 1))]
        parts = {part: data[slice(*ends)] for part, ends in zip(present, pairwise(bounds))}
        sums = b"".join(crc32c(head + part) for part in [*filter(None, parts.values())] or [b""])
        check(head + sums == data[:bounds[0]], "a part differs from its checksum")
        check(bounds[-1] == len(data), "the chunk has a wrong size")
        streams = {k: Stream(v[k == REFINEMENTS:]) for k, v in parts.items() if k != VERBATIM}
        valid, cuts, tokens, self.patches = {}, [], {}, {}
        lone = coding.version > 1 and height * width == 1  # vectors that stand in a row
        for s, y, x in product(range(samples), range(height), range(width)):  # "Mask"
            left = valid.get((s - lone, y, x + lone - 1), valid.get((s, y - 1, x), 0))
            v = left + sum(valid.get((s, y - 1, i), left) for i in (x - 1, x, x + 1))
            valid[s, y, x] = streams[MASK].symbol((0, MISSING[v], TOTAL)) if MASK in parts else 1
        self.valid = {token for token in valid if valid[token]}
        for at in ({token[axis] for token in self.valid} or {0} for axis in (1, 2)):  # "Blocks"
            length = max(at) + 1 - min(at)
            n = -(-length // coding.block)
            cuts.append([min(at) + i * length // n for i in range(n)])
        for s, y, x in self.valid:
            at = s, bisect_right(cuts[0], y) - 1, bisect_right(cuts[1], x) - 1
            tokens.setdefault(at, []).append((y, x))
        self.blocks = {at: Block(tokens[at], coding) for at in sorted(tokens)}
        numbered = list(product(range(samples), *(range(len(cut)) for cut in cuts)))
        data = parts.get(VERBATIM, bytes(4))
        at = 4 + 4 * numbers("I", data[:4])[0]
        for block in (self.blocks[numbered[number]] for number in numbers("I", data[4:at])):
            end = at + 4 * bands * block.height * block.width
            block.verbatim, at = numbers("f", data[at:end]), end
        check(at == len(data), "the verbatim blocks do not decode")
        coded = {at: block for at, block in self.blocks.items() if block.verbatim is None}
        stream, (p, *_) = streams.get(REFINEMENTS), parts.get(REFINEMENTS, bytes(1))
        for (s, r, c), block in coded.items():
            if stream and stream.symbol((0, p << 8, TOTAL)):
                block.refinement = 1 + stream.bits(5)
            near = coded.get((s, r, c - 1)), coded.get((s, r - 1, c))
            block.near = [b if b and b.refinement == block.refinement else None for b in near]
        counts = coding.counts if CODES in parts else ()
        for block in coded.values() if counts else ():  # "Codebook"
            total = sum(counts)
            starts = [(below << 16) // total for below in accumulate(counts, initial=0)]
            block.code = streams[CODES].symbol(starts)
            counts = [(c + 1) >> 1 if total + 32 > TOTAL else c for c in counts]
            counts[block.code] += 32
        levels = [[level_of(code) for code in row] for row in coding.level]
        flag_levels = [[level_of(code) for code in row] for row in coding.flag_level]
        for part, (octaves, group) in enumerate(coding.segments, SEGMENTS):  # "Coefficients"
            for octave, block, band in product(octaves, coded.values(), group):
                for tile in (tile for tile in block.tiles if tile[0] == octave):
                    read = block.read_tile if octave else block.read_dc
                    found = read(streams[part], coding, band, tile, levels[band], flag_levels[band])
                    for level, magnitude in found if block.refinement == 0 else ():
                        level[:] = level[0] + 1024 * magnitude, level[1] + 1
        stream, token = streams.get(PATCHES), -1  # "Patches"
        for _ in range(stream.gamma() if stream else 0):
            token, corrected, steps = token + stream.gamma(), stream.gamma(), [0] * bands
            one = (2 * ((16 * corrected - 1) // bands) + 1) << 11
            for band in range(bands):
                if stream.symbol((0, TOTAL - one, TOTAL)):
                    length = next(n for n in range(15) if stream.bits(1) == 0)
                    steps[band] = ((1 << length) + stream.bits(length)) * (1 - 2 * stream.bits(1))
            check(bands - steps.count(0) == corrected and token < len(valid), "a damaged patch")
            self.patches[token] = steps
        check(not any(s.words or s.state for s in streams.values()), "a stream does not decode")

    def values(self):  # "Values of a coded block"; packed, by sample, band, y, x
        (_, bands, height, width), out = self.shape, [math.nan] * math.prod(self.shape)
        for ((s, _, _), block), band in product(self.blocks.items(), range(bands)):
            r, z = block.refinement, block.transformed(band, self.coding.offsets)
            centre = self.coding.codebook[block.code][band] if self.coding.version == 2 else 0
            near = finer(centre * self.coding.units[band], r) if centre else 0
            factor = float32(float32(self.coding.steps[band] * 2**-16) * 2.0 ** -(r >> 1))
            factor = float32(factor * float32(math.sqrt(0.5))) if r & 1 else factor
            for i, (y, x) in enumerate(block.box):
                patch = self.patches.get((s * height + y) * width + x)
                value = float32(float32(z[i] + near + (patch[band] << 15 if patch else 0)) * factor)
                value = block.verbatim[band * len(z) + i] if block.verbatim else value
                if (s, y, x) in self.valid:
                    out[((s * bands + band) * height + y) * width + x] = value
        return struct.pack(f"<{len(out)}f", *out)

def checked(data):
    check(crc32c(data[:-4]) == data[-4:], "a chunk or an index differs from its checksum")
    return data[:-4]

def open_array(store, name):  # "Store": shape, that of chunks, codec, chunks by first element
    array = json.loads((store / name / "zarr.json").read_text())
    [codec, *_], outer = array["codecs"], array["chunk_grid"]["configuration"]["chunk_shape"]
    inner, sharded = outer, codec["name"] == "sharding_indexed"
    if sharded:
        inner, [codec, *_] = (codec["configuration"][key] for key in ("chunk_shape", "codecs"))
    within, chunks = list(product(*(range(0, o, i) for o, i in zip(outer, inner)))), {}
    for corner in product(*(range(0, n, o) for n, o in zip(array["shape"], outer))):
        path = store.joinpath(name, "c", *(str(at // o) for at, o in zip(corner, outer)))
        if path.exists():  # nothing but missing vectors where it does not
            data, n = path.read_bytes(), len(within)
            index = checked(data[-16 * n - 4:]) if sharded else struct.pack("<QQ", 0, len(data))
            for at, (offset, length) in zip(within, struct.iter_unpack("<QQ", index)):
                if offset != 2**64 - 1:
                    chunks[tuple(map(sum, zip(corner, at)))] = checked(data[offset:offset + length])
    return array["shape"], inner, codec, chunks

def main(store, *names):
    version = json.loads((store / "zarr.json").read_text())["attributes"]["nec"]["format_version"]
    check(version in (1, 2), f"format version {version} is not known")
    for name in names or [n for n in ("embedding", "scene_embedding") if (store / n).exists()]:
        whole, shape, codec, chunks = open_array(store, name)
        coding = Coding(codec["configuration"])
        packed = b"".join(Chunk(data, coding, shape).values() for data in chunks.values())
        found = [value for value in numbers("f", packed) if not math.isnan(value)]
        missing, mean = math.prod(whole) - len(found), math.fsum(found) / max(len(found), 1)
        [coded] = open_array(store, f"nec/vectors/{name}/chunk")[-1].values()
        _, shape, _, known = open_array(store, f"nec/vectors/{name}/values")
        check(Chunk(coded, coding, shape).values() == known[0, 0, 0, 0], "a test vector differs")
        print(f"{name}: {whole}, mean {mean}, {missing} missing; test vector decodes to its values")

if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
