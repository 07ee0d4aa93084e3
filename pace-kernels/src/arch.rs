//! The tiers: what each one overrides, and the shims that give the generic bodies their features.

/// Makes a tier's shims: for each kernel a function with the tier's target features whose body is
/// the generic one, and `SHIMS`, the table of them. `$token` is the tier's pulp token, `$lanes` its
/// lanes for tiles, `$attr` its `target_feature` attribute.
macro_rules! shims {
    ([$(#[$attr:meta])?] $token:expr, $lanes:expr) => {
        $(#[$attr])?
        fn widen_bf16(src: &[bf16], dst: &mut [f32]) {
            generic::convert::widen_bf16(src, dst);
        }
        $(#[$attr])?
        fn narrow_bf16(src: &[f32], dst: &mut [bf16]) {
            generic::convert::narrow_bf16($token, src, dst);
        }
        $(#[$attr])?
        fn deinterleave_bf16(src: &[bf16], even: &mut [f32], odd: &mut [f32]) {
            generic::convert::deinterleave_bf16(src, even, odd);
        }
        $(#[$attr])?
        fn norm(norm: &RowNorm<'_>, x: ActRef<'_>, out: ActMut<'_>) {
            generic::norm::norm($token, norm, x, out);
        }
        $(#[$attr])?
        fn add_norm(norm: &RowNorm<'_>, x: ActMut<'_>, r: ActRef<'_>, out: ActMut<'_>) {
            generic::norm::add_norm($token, norm, x, r, out);
        }
        $(#[$attr])?
        fn norm_quantize(
            norm: &RowNorm<'_>,
            x: ActRef<'_>,
            dtype: DType,
            scratch: &mut [f32],
            out: generic::quantize::Out<'_>,
        ) {
            generic::norm::norm_quantize($token, norm, x, dtype, scratch, out);
        }
        $(#[$attr])?
        fn quantize_f32(src: &[f32], out: generic::quantize::Out<'_>) {
            generic::quantize::groups($token, src, out);
        }
        $(#[$attr])?
        fn quantize_bf16(src: &[bf16], out: generic::quantize::Out<'_>) {
            generic::quantize::groups($token, src, out);
        }
        $(#[$attr])?
        fn rotate(row: &mut [f32]) {
            generic::rotate::rotate($token, row);
        }
        $(#[$attr])?
        fn quantize_rotated_f32(src: &[f32], out: generic::rotate::Out<'_>) {
            generic::rotate::quantize($token, src, out);
        }
        $(#[$attr])?
        fn quantize_rotated_bf16(src: &[bf16], out: generic::rotate::Out<'_>) {
            generic::rotate::quantize($token, src, out);
        }
        $(#[$attr])?
        fn quantize_weights(row: generic::weights::Row<'_>) {
            generic::weights::quantize(row);
        }
        $(#[$attr])?
        fn rope_half(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
            generic::rope::rope_half($token, x, head_dim, cos, sin);
        }
        $(#[$attr])?
        fn rope_interleaved(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
            generic::rope::rope_interleaved(x, head_dim, cos, sin);
        }
        $(#[$attr])?
        fn activate(kind: Activation, x: &mut [f32]) {
            generic::activation::activate($token, kind, x);
        }
        $(#[$attr])?
        fn act_mul(kind: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
            generic::activation::act_mul($token, kind, gate, up, out);
        }
        $(#[$attr])?
        fn max(x: &[f32]) -> f32 {
            generic::softmax::max($token, x)
        }
        $(#[$attr])?
        fn exp_sub(x: &mut [f32], shift: f32) -> f32 {
            generic::softmax::exp_sub($token, x, shift)
        }
        $(#[$attr])?
        fn add(x: &mut [f32], y: &[f32]) {
            generic::softmax::add($token, x, y);
        }
        $(#[$attr])?
        fn scale(x: &mut [f32], factor: f32) {
            generic::softmax::scale($token, x, factor);
        }
        $(#[$attr])?
        fn gemv_nt(a: &[f32], w: MatRef<'_, f32>, c: &mut [f32], accumulate: bool) {
            generic::gemv::gemv_nt($token, a, w, c, accumulate);
        }
        $(#[$attr])?
        fn gemv_nt_bf16(a: &[f32], w: MatRef<'_, bf16>, c: &mut [f32]) {
            generic::gemv::gemv_nt_bf16($token, a, w, c);
        }
        $(#[$attr])?
        fn gemv_nn(a: &[f32], b: MatRef<'_, f32>, c: &mut [f32], accumulate: bool) {
            generic::gemv::gemv_nn($token, a, b, c, accumulate);
        }
        $(#[$attr])?
        fn attention_step_bf16(step: Step<'_, bf16>) {
            generic::attention::step($token, step);
        }
        $(#[$attr])?
        fn attention_step_f32(step: Step<'_, f32>) {
            generic::attention::step($token, step);
        }
        $(#[$attr])?
        fn attention_unpack(unpack: crate::attention::Unpack<'_>) {
            generic::unpack::unpack(generic::unpack::Plain, unpack);
        }
        $(#[$attr])?
        fn attention_fold(total: &mut State<'_>, part: Part<'_>) {
            generic::attention::fold($token, total, part);
        }
        $(#[$attr])?
        fn attention_finish(m: f32, l: f32, sink: f32, o: &mut [f32]) {
            generic::attention::finish($token, m, l, sink, o);
        }
        $(#[$attr])?
        fn finish_row(sums: &mut [f32], epilogue: &RowEpilogue<'_>, out: RowMut<'_>) {
            generic::epilogue::finish_row($token, sums, epilogue, out);
        }
        /// # Safety
        /// The CPU has this tier; what `t` describes is accessible.
        $(#[$attr])?
        unsafe fn tile_f32(t: &TileArgs) {
            // SAFETY: passed on to the caller.
            unsafe { generic::tile::tile::<generic::tile::F32, _>($lanes, t) }
        }
        /// # Safety
        /// The CPU has this tier; what `t` describes is accessible.
        $(#[$attr])?
        unsafe fn tile_bf16(t: &TileArgs) {
            // SAFETY: passed on to the caller.
            unsafe { generic::tile::tile::<generic::tile::Bf16, _>($lanes, t) }
        }
        /// # Safety
        /// The CPU has this tier; what `t` describes is accessible.
        $(#[$attr])?
        unsafe fn tile_int8(t: &TileArgs) {
            // SAFETY: passed on to the caller.
            unsafe { generic::tile::tile::<generic::tile::Int8, _>($lanes, t) }
        }
        /// # Safety
        /// The CPU has this tier; what `t` describes is accessible.
        $(#[$attr])?
        unsafe fn tile_4_bit(t: &TileArgs) {
            // SAFETY: passed on to the caller.
            unsafe { generic::four_bits::tile($lanes, t) }
        }
        $(#[$attr])?
        fn unpack_4_bit(packed: &[u8], line: usize, table: &[u8; 16], out: &mut [u8]) {
            generic::four_bits::unpack($lanes, packed, line, table, out);
        }
        $(#[$attr])?
        fn probe_peak(kind: TileKind, rounds: usize) -> u64 {
            generic::probe::peak($lanes, kind, rounds)
        }
        $(#[$attr])?
        fn probe_read(x: &[f32]) -> f32 {
            generic::probe::read($token, x)
        }
        const SHIMS: Table = Table {
            widen_bf16,
            widen_f16: crate::arch::scalar::widen_f16,
            narrow_bf16,
            deinterleave_bf16,
            norm,
            add_norm,
            norm_quantize,
            quantize_f32,
            quantize_bf16,
            rotate,
            quantize_rotated_f32,
            quantize_rotated_bf16,
            quantize_weights,
            rope_half,
            rope_interleaved,
            activate,
            act_mul,
            max,
            exp_sub,
            add,
            scale,
            gemv_nt,
            gemv_nt_bf16,
            gemv_nn,
            attention: AttentionTiles {
                step_bf16: attention_step_bf16,
                step_f32: attention_step_f32,
                unpack: attention_unpack,
                fold: attention_fold,
                finish: attention_finish,
            },
            finish_row,
            tile_f32,
            tile_f32_strip: usize::MAX,
            tile_bf16,
            tile_bf16_rows: crate::gemm::tile::MAX_ROWS,
            tile_many_rows: crate::gemm::tile::MAX_ROWS,
            tile_bf16_products: crate::gemm::tile::MAX_ROWS,
            tile_int8,
            tile_int8_rows: crate::gemm::tile::MAX_ROWS,
            quad: size_of::<[i8; 4]>(),
            tile_4_bit,
            tile_4_bit_rows: crate::gemm::tile::MAX_4_BIT_ROWS,
            tile_4_bit_products: crate::gemm::tile::MAX_4_BIT_ROWS / 2,
            unpack_4_bit,
            probe_peak,
            probe_read,
        };
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_vnni;
pub(crate) mod scalar;
