"""How feature maps and weights lie in memory for the kernels, and which kernel a convolution gets."""

import numpy as np

from ..kernels import bitplanes, lookup, popcount, simd, stem

WORD = 64
"""Channels in a word of a bit-plane."""

KERNELS = ("auto", "popcount", "lookup")


def check_kernel(name):
    """Refuse a kernel that is unknown or that this CPU cannot run, with a ValueError."""
    if name not in KERNELS:
        raise ValueError(f"unknown kernel '{name}': choose one of {', '.join(KERNELS)}")
    if name == "lookup" and not simd.has_byte_shuffle():
        raise ValueError("the look-up kernel needs a CPU with AVX2: choose kernel 'auto' or 'popcount'")


def select_kernel(convolution, name="auto"):
    """Kernel of a bit convolution: "popcount" or "lookup".

    With AVX-512's vector popcount an AND, a popcount and an addition treat 512 products of one bit, as many as a byte
    shuffle and an addition do, and no tables are made: popcount. With AVX2 alone a popcount takes seven instructions:
    look-up, where its 8-bit tables and 16-bit sums suffice. Without AVX2 there is no byte shuffle: popcount.
    `tests/benchmarks` measures both.

    Parameters
    ----------
    convolution : bitseg.architecture.Convolution
    name : {"auto", "popcount", "lookup"}
        Forces a kernel; "lookup" still leaves to popcount what it cannot do.
    """
    largest = convolution.in_channels * convolution.kernel**2 * (2**convolution.input_bits - 1)
    can_look_up = (
        simd.has_byte_shuffle()
        and convolution.input_bits <= lookup.MOST_ACTIVATION_BITS
        and largest <= lookup.LARGEST_SUM
    )
    if name == "popcount" or not can_look_up:
        return "popcount"
    return "popcount" if name == "auto" and simd.has_vector_popcount() else "lookup"


def bit_planes(height, width, channels, bits, margin=1):
    """Empty `kernels.bitplanes.Planes` for a feature map; the border stays zero.

    Parameters
    ----------
    height, width, channels : int
    bits : int
        1 to 8.
    margin : int
        Zero pixels around the map: the largest padding of the convolutions that read it.

    Returns
    -------
    Planes
    """
    rows, columns = height + 2 * margin, width + 2 * margin
    words = np.zeros((bits, rows, columns, -(-channels // WORD)), np.uint64)
    return bitplanes.Planes(tuple(words), np.zeros((rows, columns), np.int32), margin)


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
    padded = np.zeros((height, width, -(-channels // WORD) * WORD), np.uint8)
    padded[:, :, :channels] = codes
    planes = bit_planes(height, width, channels, bits, margin)
    for y in range(height):
        bitplanes.pack_pixels(padded[y], planes, y, 0, width)
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


def popcount_filters(convolution, weights):
    """`kernels.popcount.PopcountFilters` of a convolution and its `model_file.LayerWeights`."""
    kernel, lanes = convolution.kernel, popcount.LANES
    codes = _padded_codes(weights.codes, lanes, WORD)
    span = kernel * codes.shape[3] // WORD

    def lay_out(ones):
        words = np.packbits(ones, -1, "little").view(np.uint64).reshape(-1, lanes, kernel, span)
        return np.ascontiguousarray(words.transpose(0, 2, 3, 1))

    return popcount.PopcountFilters(_each_bit(convolution, codes, lay_out), *_filter_fields(convolution, weights))


def lookup_filters(convolution, weights):
    """`kernels.lookup.LookupFilters` of a convolution and its `model_file.LayerWeights`."""
    kernel, lanes = convolution.kernel, lookup.LANES
    codes = _padded_codes(weights.codes, lanes, 8)
    span = kernel * codes.shape[3] // 8

    def lay_out(ones):
        # Channels 0 to 15 to the even lanes, 16 to 31 to the odd ones.
        groups = np.packbits(ones, -1, "little").reshape(-1, 2, lanes // 2, kernel, span)
        return np.ascontiguousarray(groups.transpose(0, 3, 4, 2, 1).reshape(-1, kernel, span, lanes))

    return lookup.LookupFilters(_each_bit(convolution, codes, lay_out), *_filter_fields(convolution, weights))


def stem_filters(convolution, weights):
    """`kernels.stem.StemFilters` of the first layer and its `model_file.LayerWeights`.

    Raises
    ------
    ValueError
        The sums could exceed what float32 holds exactly.
    """
    kernel, channels = convolution.kernel, convolution.out_channels
    if 3 * kernel**2 * 255 * (2**convolution.weight_bits - 1) >= 2**24:
        raise ValueError(f"sums of a {kernel}x{kernel} stem are not exact in float32: use a smaller kernel")
    multiplier, offset = _padded_factors(weights)
    taps = np.zeros((kernel, 3 * kernel, len(multiplier)), np.float32)
    signed = 2.0 * weights.codes - (2**convolution.weight_bits - 1)
    taps[:, :, :channels] = signed.reshape(channels, kernel, 3 * kernel).transpose(1, 2, 0)
    return stem.StemFilters(taps, multiplier, offset, kernel)


def _padded_codes(codes, out_multiple, in_multiple):
    """Weight codes with zero filters and channels up to multiples of what a kernel treats at a time."""
    out, channels = codes.shape[0], codes.shape[3]
    shape = -(-out // out_multiple) * out_multiple, *codes.shape[1:3], -(-channels // in_multiple) * in_multiple
    padded = np.zeros(shape, np.uint8)
    padded[:out, :, :, :channels] = codes
    return padded


def _each_bit(convolution, codes, lay_out):
    return tuple(lay_out((codes >> bit) & 1) for bit in range(convolution.weight_bits))


def _padded_factors(weights):
    """Multiplier and offset, 0 up to a multiple of the channels in a word."""
    channels = len(weights.multiplier)
    padded = np.zeros((2, -(-channels // WORD) * WORD), np.float32)
    padded[:, :channels] = weights.multiplier, weights.offset
    return padded[0], padded[1]


def _filter_fields(convolution, weights):
    """The fields beside the weights, in the order of `kernels.popcount.PopcountFilters`."""
    levels = 2**convolution.weight_bits - 1
    return *_padded_factors(weights), convolution.kernel, levels, convolution.stride, convolution.padding
