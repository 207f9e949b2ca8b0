"""How feature maps and weights lie in memory for the kernels, and which kernel a convolution gets."""

from functools import lru_cache

import numba
import numpy as np

from ..errors import unknown
from ..kernels import amx, bitplanes, dot, lookup, popcount, simd, tile, winograd
from ..kernels.convolution import LANES, Rounding
from ..kernels.jit import empty_aligned
from ..model_file import LayerWeights
from .reference import interpolation, round_to_code, scale

WORD = 64
"""Channels in a word of a bit-plane."""

KEPT_SAMPLES = 32
"""Sample positions are some hundred kilobytes for a photo of a camera."""

KERNELS = ("auto", "popcount", "lookup", "dot", "tile")


def check_kernel(name):
    """Refuse a kernel that is unknown or that cannot run here, with a ValueError."""
    if numba.config.DISABLE_JIT:
        raise ValueError("NUMBA_DISABLE_JIT keeps Numba from compiling, and kernels do not run without: unset it")
    if name not in KERNELS:
        raise ValueError(unknown("kernel", name, KERNELS))
    if name == "lookup" and not simd.has_byte_shuffle():
        raise ValueError("the look-up kernel needs a CPU with AVX2 or NEON: choose kernel 'auto', 'popcount' or 'dot'")
    if name == "tile" and not amx.has_tiles():
        needed = "a CPU with AMX, and Linux's permission to use it"
        raise ValueError(f"the tile kernel needs {needed}: choose kernel 'auto', 'popcount' or 'dot'")


def kernel_costs(convolution):
    """About how many cycles each kernel that can run a bit convolution needs for a thousand multiplications.

    Popcount treats each pair of bit-planes by itself: with AVX-512's vector popcount an AND, a popcount and an addition
    are 512 products of one bit, without it that takes seven instructions more. Look-up treats each plane of the weights
    by itself, all planes of at most 4-bit activations at once; of three and four bits it makes tables, which cost the
    more, the fewer filters and taps read them. A dot product takes the same time whatever the bits, several times as
    long where the CPU multiplies no bytes, and a product of tiles a fifth of it; both first make bytes of bit-planes.
    `tests/benchmarks` measures all four on x86; ARM's instructions were counted. The residual stream is bytes: only dot
    products and tiles read it.

    Parameters
    ----------
    convolution : bitseg.architecture.Convolution

    Returns
    -------
    dict from kernel name to float
    """
    products = convolution.weight_bits * convolution.input_bits
    uses = convolution.out_channels * convolution.kernel**2 / convolution.stride**2
    of_dot = 14 if simd.has_byte_dot_product() else 24 if simd.has_byte_pair_product() else 110
    costs = {"dot": of_dot + 400 / uses}
    if amx.has_tiles():
        costs["tile"] = 2 + 150 / uses
    if convolution.reads_stream:
        return costs
    costs["popcount"] = products * (2.4 if simd.has_vector_popcount() else 15)
    if simd.has_byte_shuffle() and convolution.input_bits <= lookup.MOST_ACTIVATION_BITS:
        plane, tables = (6, 200) if convolution.input_bits <= 2 else (9, 800)
        costs["lookup"] = convolution.weight_bits * plane + tables / uses
    return costs


def select_kernel(convolution, name="auto"):
    """Kernel of a bit convolution: "popcount", "lookup", "dot" or "tile".

    Parameters
    ----------
    convolution : bitseg.architecture.Convolution
    name : {"auto", "popcount", "lookup", "dot", "tile"}
        Forces a kernel where it can run; "auto" takes the least of `kernel_costs`, "lookup" popcount where it cannot.
    """
    costs = kernel_costs(convolution)
    if name == "lookup" and name not in costs:
        name = "popcount"
    return name if name in costs else min(costs, key=costs.get)


def bit_planes(height, width, channels, bits, margin=1, zeros=np.zeros):
    """Empty `kernels.bitplanes.Planes` for a feature map.

    Parameters
    ----------
    height, width, channels : int
    bits : int
        1 to 8.
    margin : int
        Zero pixels around the map: the largest padding of the convolutions that read it.
    zeros : callable
        Makes an array of a shape and a type.

    Returns
    -------
    Planes
    """
    rows, columns = height + 2 * margin, width + 2 * margin
    words = tuple(zeros((rows, columns, -(-channels // WORD)), np.uint64) for _ in range(bits))
    return bitplanes.Planes(words, zeros((rows, columns), np.int32), margin)


def pack_bit_planes(codes, bits, margin=1):
    """Split unsigned codes into bit-planes, 64 channels to a word.

    Parameters
    ----------
    codes : ndarray of uint8, shape (height, width, channels)
        Activation codes, each below ``2**bits``.
    bits : int
        Bits per code, 1 to 8.
    margin : int
        Zero pixels around the map.

    Returns
    -------
    Planes

    Raises
    ------
    ValueError
        A code needs more than `bits` bits, or the array has another type or shape.

    Source: Wen et al. 2016, section 3.
    """
    if codes.dtype != np.uint8 or codes.ndim != 3:
        raise ValueError(f"codes must be uint8 of 3 axes, not {codes.dtype} of {codes.ndim}: use .astype(np.uint8)")
    if codes.size and int(codes.max()) >= 2**bits:
        raise ValueError(f"code {codes.max()} needs more than {bits} bits")
    height, width, channels = codes.shape
    padded = np.zeros((height, width, -(-channels // LANES) * LANES), np.uint8)
    padded[:, :, :channels] = codes
    planes = bit_planes(height, width, channels, bits, margin)
    bitplanes.pack_rows(padded, planes)
    return planes


def unpack_bit_planes(planes, channels):
    """Codes, uint8 of shape (height, width, channels), of `Planes`: the inverse of `pack_bit_planes`."""
    margin = planes.margin
    inside = np.s_[margin:-margin, margin:-margin] if margin else np.s_[:, :]
    codes = 0
    for bit, plane in enumerate(planes.words):
        ones = np.unpackbits(np.ascontiguousarray(plane[inside]).view(np.uint8), axis=-1, bitorder="little")
        codes = codes + (ones[..., :channels] << bit)
    return codes.astype(np.uint8)


def bit_filters(convolution, weights, kernel):
    """Filters of a convolution and its `model_file.LayerWeights` for a kernel, see `select_kernel`."""
    lay_out = {
        "popcount": _popcount_filters,
        "lookup": _lookup_filters,
        "dot": _feature_map_dot_filters,
        "tile": _feature_map_tile_filters,
    }
    return lay_out[select_kernel(convolution, kernel)](convolution, weights)


def with_rising_results(convolution, weights):
    """The same layer with no negative multiplier, so that results never fall where the integer sum rises.

    A filter whose codes q become ``levels - q`` has the sum -t instead of t; the product with the multiplier stays.
    """
    turned_bits = np.where(weights.multiplier < 0, 2**convolution.weight_bits - 1, 0).astype(np.uint8)
    return LayerWeights(weights.codes ^ turned_bits[:, None, None, None], np.abs(weights.multiplier), weights.offset)


def sum_steps(convolution, weights, sum_type):
    """Where the codes of a convolution's result change: (2**bits - 1, padded channels) of int16 or int32, or None.

    A code is the number of steps that the integer sum t exceeds. They are found by bisection with the expression that
    defines the code, which never falls because no multiplier is negative. None if the result has more bits than
    `kernels.bitplanes.MOST_BITS_BY_STEPS`, or none.
    """
    output_bits = convolution.output_bits
    if not 0 < output_bits <= bitplanes.MOST_BITS_BY_STEPS:
        return None
    if convolution.largest_sum < np.iinfo(np.int16).max and simd.narrows_sums():
        sum_type = np.int16
    codes = np.arange(1, 2**output_bits)[:, None]
    largest = convolution.largest_sum
    # The smallest sum that gives a code lies from `low` to `high`; `largest + 1` stands for none.
    low = np.full((len(codes), convolution.out_channels), -largest)
    high = np.full_like(low, largest + 1)
    while (low < high).any():
        middle = (low + high) // 2
        reached = round_to_code(scale(middle, weights.multiplier, weights.offset), output_bits) >= codes
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    steps = np.full((len(codes), len(_padded_factors(weights)[0])), np.iinfo(sum_type).max, sum_type)
    steps[:, : convolution.out_channels] = low - 1
    return steps.take(_channels_of_lanes(steps.shape[1], sum_type), 1)


def result_bound(convolution, weights):
    """The most that a result ``t * multiplier + offset`` can differ from 0, before it is rounded."""
    magnitudes = [np.abs(values.astype(np.float64)) for values in (weights.multiplier, weights.offset)]
    return float((magnitudes[0] * convolution.largest_sum + magnitudes[1]).max())


def stream_rounding(stream_bits, activation_bits, activation_multiplier):
    """`kernels.convolution.Rounding` of the residual stream; 0 bits where no activation is made of it."""
    steps = None
    if activation_bits <= bitplanes.MOST_BITS_BY_STEPS:
        activations = round_to_code(np.arange(256).astype(np.float32) * activation_multiplier, activation_bits)
        before = np.searchsorted(activations, np.arange(1, 2**activation_bits)) - 1
        steps = np.repeat((before - 128).astype(np.int8)[:, None], LANES, 1)
    largest, activation_largest = np.float32(2**stream_bits - 1), np.float32(2**activation_bits - 1)
    return Rounding(largest, steps, activation_multiplier, activation_largest)


def _popcount_filters(convolution, weights):
    """`kernels.popcount.PopcountFilters` of a convolution and its `model_file.LayerWeights`."""
    kernel, lanes = convolution.kernel, popcount.LANES
    word_bits = 8 * popcount.WORD.itemsize
    codes = _padded_codes(weights.codes, word_bits)
    words_of_in = codes.shape[3] // word_bits

    def lay_out(ones):
        words = np.packbits(ones, -1, "little").view(popcount.WORD).reshape(-1, lanes, kernel, kernel, words_of_in)
        return np.ascontiguousarray(words.transpose(0, 2, 3, 4, 1))

    return popcount.PopcountFilters(_each_bit(convolution, codes, lay_out), *_filter_fields(convolution, weights))


def _lookup_filters(convolution, weights):
    """`kernels.lookup.LookupFilters` of a convolution and its `model_file.LayerWeights`."""
    kernel, lanes = convolution.kernel, lookup.LANES
    sum_type = np.int16 if convolution.largest_sum <= np.iinfo(np.int16).max else np.int32
    # Counts are bytes, but become numbers of 16 bits.
    codes = _padded_codes(weights.codes, 32, np.int16)
    span = kernel * codes.shape[3] // 4

    def lay_out(ones):
        # The first 16 channels to the even lanes, the others to the odd ones.
        packed = np.packbits(ones, -1, "little")
        nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(-1, 2, lanes // 2, kernel, span)
        return np.ascontiguousarray(nibbles.transpose(3, 0, 4, 2, 1)).reshape(kernel, -1, span, lanes)

    planes = vectors = _each_bit(convolution, codes, lay_out)
    if len(planes) == 1 and planes[0].shape[1] % 2 == 0:
        vectors = tuple(np.ascontiguousarray(planes[0][:, number::2]) for number in range(2))
    fields = _filter_fields(convolution, weights, sum_type)
    # To make a table takes as long as to read it some three times, with two blocks of filters each time.
    many_read = kernel > 1 or convolution.out_channels >= max(256, 2 * convolution.in_channels)
    tables = lookup.TABLES if convolution.input_bits <= 2 and not many_read else None
    entries = _table_entries(planes, 2**convolution.input_bits - 1)
    return lookup.LookupFilters(vectors, tuple(range(convolution.weight_bits)), tables, entries, *fields)


def _table_entries(planes, largest_code):
    """`kernels.lookup.LookupFilters.entries`: so that a window's row takes as few parts as these weights allow."""
    ones, room = [np.take(lookup.NIBBLE_ONES, plane) for plane in planes], 255 // largest_code
    count, largest = ones[0].shape[2], max(int(terms.max()) for terms in ones)
    sum_type = np.uint16 if count * largest < 2**16 else np.uint32
    largest_sum = max(int(terms.sum(2, sum_type).max()) for terms in ones)
    for parts in range(max(1, -(-largest_sum // room)), count + 1):
        size = -(-count // (2 * parts)) * 2
        starts = range(0, count, size)
        # Smaller parts have other bounds, so that each size is tried by itself.
        if size * largest <= room or all(np.add.reduceat(terms, starts, 2, sum_type).max() <= room for terms in ones):
            return size
    raise ValueError(f"2 terms of up to {largest} exceed {room}: use fewer bits")


def _feature_map_tile_filters(convolution, weights):
    """`kernels.tile.TileFilters` of a feature map's convolution and its `model_file.LayerWeights`."""
    return _tile_filters(convolution, weights, _padded_codes(weights.codes, 4))


def _tile_filters(convolution, weights, codes):
    """`kernels.tile.TileFilters` of weight codes (out, kernel, kernel, codes of a pixel)."""
    bits = 1 << (convolution.weight_bits - 1).bit_length()
    depth = codes.shape[3]
    rows = codes.reshape(*codes.shape[:2], -1)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % amx.ROW_BYTES)))
    # Of a tile's rows of 64 bytes each holds four codes of 16 channels.
    tiles = rows.reshape(-1, 2, amx.ROWS, rows.shape[1] * rows.shape[2] // amx.ROW_BYTES, amx.ROWS, 4)
    tiles = tiles.transpose(0, 3, 1, 4, 2, 5).reshape(*tiles.shape[:1], tiles.shape[3], 2, -1, 8 // bits, amx.ROW_BYTES)
    packed = np.zeros_like(tiles[..., 0, :])
    for number in range(8 // bits):
        packed |= tiles[..., number, :] << np.uint8(number * bits)
    fields = _filter_fields(convolution, weights)
    return tile.TileFilters(_aligned(packed), np.uint8(0), bits, depth, *fields)


def _feature_map_dot_filters(convolution, weights):
    """`kernels.dot.DotFilters` of a feature map's convolution and its `model_file.LayerWeights`."""
    codes = _padded_codes(weights.codes, 4)
    return _dot_filters(convolution, weights, codes.reshape(*codes.shape[:2], -1))


def stem_filters(convolution, weights, kernel="auto"):
    """Filters of the first layer, which reads the image: `kernels.tile.TileFilters`, `dot.DotFilters` or
    `winograd.WinogradFilters`.

    kernel : {"auto", "tile", "dot", "winograd"}
        "auto" chooses tiles where the CPU has them, and the last, which is for no other, where it multiplies no bytes.
    """
    codes = _padded_codes(weights.codes, 1)
    if kernel == "auto":
        multiplies_bytes = dot.types(convolution.weight_bits, convolution.input_bits)[0] == np.uint8
        kernel = "tile" if amx.has_tiles() else "dot" if multiplies_bytes else "winograd"
    if kernel == "tile":
        check_kernel(kernel)  # which asks for permission to use tiles
        return _tile_filters(convolution, weights, codes)
    if kernel == "dot":
        return _dot_filters(convolution, weights, codes.reshape(*codes.shape[:2], -1))
    stored, fields = _dot_weights(convolution, weights, codes, winograd.TYPES)
    return winograd.WinogradFilters(_dot_vectors(winograd.spread(stored), dot.LANES), **fields)


def _dot_filters(convolution, weights, rows):
    """`kernels.dot.DotFilters` of weight codes (out, kernel, values in a row)."""
    types = dot.types(convolution.weight_bits, convolution.input_bits)
    stored, fields = _dot_weights(convolution, weights, rows, types)
    channels = _channels_of_lanes(len(rows), np.int32)
    by_pairs = simd.multiplies_pairs(8 * stored.itemsize)
    lanes = dot.PAIRS_LANES if by_pairs else dot.LANES
    blocks = -(-(1 + np.flatnonzero(channels < convolution.out_channels).max()) // lanes)
    vectors = _dot_vectors(stored[: blocks * lanes], lanes, rows_first=by_pairs)
    run = _pairs_together(vectors, convolution) if by_pairs else 1
    return dot.DotFilters(vectors, run=tuple(range(run)), **fields)


def _dot_weights(convolution, weights, codes, types):
    """Stored weights of codes of any shape, and the fields of `kernels.dot.DotFilters` beside `weights` and `run`.

    types : see `kernels.dot.types`
    """
    multiplier, offset, kernel, largest, stride, padding = _filter_fields(convolution, weights)
    code_type, weight_type, signed = types
    codes = codes.astype(np.int16)
    excess = (largest + 1) // 2 if np.iinfo(weight_type).min < 0 else 0
    stored = (2 * codes - largest if signed else codes - excess).astype(weight_type)
    return stored, {
        "zero": code_type(0),
        "multiplier": multiplier,
        "offset": offset,
        "kernel": kernel,
        "levels": None if signed else np.int32(largest - 2 * excess),
        "stride": stride,
        "padding": padding,
    }


def _dot_vectors(stored, lanes, rows_first=False):
    """`kernels.dot.DotFilters.weights` of stored weights (out, rows of a window, values in a row)."""
    _, rows, values = stored.shape
    group = 4 // stored.itemsize
    # What stands beside the values of the last group in the image is multiplied with 0.
    stored = np.pad(stored, ((0, 0), (0, 0), (0, -values % group)))
    vectors = stored.reshape(-1, lanes, rows, stored.shape[2] // group, group)
    return _aligned(vectors.transpose(2, 0, 3, 1, 4) if rows_first else vectors.transpose(0, 2, 3, 1, 4))


def _pairs_together(vectors, convolution):
    """Length of `kernels.dot.DotFilters.run`: 8, or what of it these weights allow."""
    longest, room = 8, np.iinfo(np.int16).max // (2**convolution.input_bits - 1)
    if longest * 2 ** (convolution.weight_bits + 1) <= room:
        return longest
    rows, _, groups = vectors.shape[:3]
    # Neighbouring bytes share the 16 bits of a sum, which is largest, or smallest, where all its codes are.
    pairs = vectors.transpose(1, 3, 4, 0, 2).astype(np.int16).reshape(-1, 2, rows, groups)
    terms = [np.maximum(sign * pairs, 0).sum(1) for sign in (1, -1)]

    def fit(run):
        parts = (each[..., : groups - groups % run].reshape(len(each), -1, run).sum(2) for each in terms)
        return all(part.max(initial=0) <= room for part in parts)

    return next(run for run in (longest, 4, 2, 1) if fit(run))


def _padded_codes(codes, in_multiple, sum_type=np.int32):
    """Weight codes in the order of lanes, with zero filters up to whole `LANES` and zero channels up to a multiple."""
    out, channels = codes.shape[0], codes.shape[3]
    shape = -(-out // LANES) * LANES, *codes.shape[1:3], -(-channels // in_multiple) * in_multiple
    padded = np.zeros(shape, np.uint8)
    padded[:out, :, :, :channels] = codes
    return padded[_channels_of_lanes(len(padded), sum_type)]


def _channels_of_lanes(channels, sum_type):
    """The channels, a multiple of `LANES`, in the order in which vectors of a type hold them."""
    order = simd.lane_channels(8 * np.dtype(sum_type).itemsize)
    return (np.arange(0, channels, LANES)[:, None] + order).reshape(-1)


def _aligned(array):
    """A copy that begins where a cache line does: no row of a tile lies in two of them."""
    copy = empty_aligned(array.size, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _each_bit(convolution, codes, lay_out):
    return tuple(lay_out((codes >> bit) & 1) for bit in range(convolution.weight_bits))


def _padded_factors(weights):
    """Multiplier and offset, 0 up to a multiple of the channels that are treated at a time."""
    channels = len(weights.multiplier)
    padded = np.zeros((2, -(-channels // LANES) * LANES), np.float32)
    padded[:, :channels] = weights.multiplier, weights.offset
    return tuple(padded.take(_channels_of_lanes(padded.shape[1], np.float32), 1))


def _filter_fields(convolution, weights, sum_type=np.int32):
    """The fields beside the weights, in the order of `kernels.popcount.PopcountFilters`."""
    levels = sum_type(2**convolution.weight_bits - 1)
    return *_padded_factors(weights), convolution.kernel, levels, convolution.stride, convolution.padding


@lru_cache(KEPT_SAMPLES)
def row_samples(size, score_size, cells):
    """`reference.interpolation` of rows, kept: photos of one size follow one another."""
    return interpolation(size, score_size, cells)


@lru_cache(KEPT_SAMPLES)
def column_samples(size, score_size, cells):
    """`reference.interpolation` of columns as `kernels.decoder.label_rows` takes it, with bases; kept, too."""
    first, second, weight = interpolation(size, score_size, cells)
    padding = -len(first) % 8
    if cells >= 8:
        # The last pixel again, up to a whole block.
        blocks = [np.pad(array, (0, padding), "edge").reshape(-1, 8) for array in (first, second, weight)]
        bases = np.minimum(blocks[0][:, 0], cells - 8).astype(np.int32)
        indices = [array - bases[:, None] for array in blocks[:2]]
        if indices[1].max() < 8:
            return *(array.reshape(-1) for array in (*indices, blocks[2])), bases
    return first, second, weight, np.zeros(0, np.int32)
