"""SIMD vectors as Numba values, made of generic LLVM operations and, where the CPU has them, of some of x86 and ARM.

A `Vector` is an ordinary value in a kernel: it lives in a register and every operation below is one LLVM instruction
or intrinsic. LLVM splits a vector where the CPU's registers are narrower, so a kernel written with them is correct on
any CPU, and the results do not depend on the width. Offsets count elements of the array.
"""

from .arithmetic import (
    add,
    add_float,
    broadcast_f32x8,
    broadcast_f32x16,
    broadcast_i32x16,
    exact_quotient,
    i32x16_to_u8x16,
    maximum,
    minimum,
    multiply_float,
    select_greater,
    shift_left,
    subtract,
    subtract_float,
)
from .bits import clear_half, store_bits, store_codes, store_steps, sum_u8x32, to_elements_of
from .build import x86
from .counts import broadcast_words, count_matches, load_words, store_counts, zero_counts
from .cpu import (
    cpu_features,
    has_byte_dot_product,
    has_byte_pair_product,
    has_byte_shuffle,
    has_vector_popcount,
    is_arm,
    multiplies_unsigned_bytes,
    narrows_sums,
    target_cpu,
)
from .memory import (
    load_f32x8,
    load_f32x16,
    load_f32x32,
    load_i32x16,
    load_s16x16,
    load_u8x32,
    pick_f32x8,
    store,
    store_each,
)
from .products import (
    DOT_PIXELS,
    PAIRS_VECTORS,
    add_dot_products,
    add_pairs,
    dot_lanes,
    load_pairs,
    load_weights,
    multiplies_pairs,
    not_unrolled,
    values_in_32_bits,
    zero_dots,
    zero_pairs,
)
from .sums import (
    lane_channels,
    load_signed_sums,
    multiply_codes,
    round_to_u8x32,
    signed_sums_to_f32x32,
    to_channel_order,
)
from .tables import (
    add_byte_counts,
    load_bytes_each,
    look_up,
    lookup_pixels,
    set_byte_counts,
    store_offsets,
    store_tables,
    window_places,
    zero_bytes,
)
from .vectors import Vector
