//! The tile over weights of 4 bits against the int8 tile over the same weights unpacked: the same bits, and nothing outside of
//! the operands.

use half::{bf16, f16};

use super::noise_vec;
use crate::gemm::tile::{FourBits, TileArgs};
use crate::tests::guard::{Flush, Guarded};
use crate::tests::tiers;
use crate::weights::Panels;
use crate::{Kernels, WeightFormat};

/// Inputs of a group of activations.
const GROUPS: [usize; 2] = [32, 16];

struct Case {
    panels: Panels,
    /// Of activations.
    group: usize,
    rows: usize,
    records: Guarded<u8>,
    /// `[rows][k]`.
    a: Guarded<i8>,
    /// `[rows][groups]`, both.
    a_scales: Guarded<f32>,
    a_offsets: Guarded<i32>,
}

impl Case {
    fn new(
        format: WeightFormat,
        group: usize,
        rows: usize,
        width: usize,
        groups: usize,
        flush: Flush,
    ) -> Self {
        let k = groups * format.group().unwrap();
        let panels = Panels { format, n: width, k, width, paired: false };
        let values: Vec<i8> = noise_vec(1, rows * k).iter().map(|x| (x * 127.9) as i8).collect();
        let offset = |a: &[i8]| -128 * a.iter().map(|&a| i32::from(a)).sum::<i32>();
        let offsets: Vec<_> = values.chunks(group).map(offset).collect();
        Self {
            panels,
            group,
            rows,
            records: Guarded::new(flush, &records(&panels)),
            a: Guarded::new(flush, &values),
            a_scales: Guarded::new(flush, &noise_vec(2, rows * k / group)),
            a_offsets: Guarded::new(flush, &offsets),
        }
    }

    /// The tile's arguments without weights, for all rows.
    fn args(&self, sums: &mut [f32], resume: bool) -> TileArgs {
        let groups = self.panels.k / self.group;
        TileArgs {
            a: self.a.as_ptr().cast(),
            a_stride: self.panels.k,
            w: std::ptr::null(),
            steps: self.panels.steps(),
            sums: sums.as_mut_ptr(),
            sums_stride: self.panels.width,
            resume,
            rows: self.rows,
            width: self.panels.width,
            prefetch: self.records.as_ptr(),
            prefetch_lines: 3,
            a_scales: self.a_scales.as_ptr(),
            a_offsets: self.a_offsets.as_ptr(),
            a_groups: groups,
            group_steps: self.group / 4,
            w_scales: std::ptr::null(),
            w_stride: self.panels.group_scales(),
            w_shift: (self.panels.group() / self.group).ilog2(),
            has_min: self.panels.format.has_min(),
            four_bits: FourBits::default(),
        }
    }

    fn packed(&self, kernels: &Kernels, sums: &mut [f32], resume: bool) {
        let four_bits = self.panels.format.four_bits();
        let t = TileArgs { w: self.records.as_ptr(), four_bits, ..self.args(sums, resume) };
        // SAFETY: the CPU has the tier; the operands have the shapes that the arguments say.
        unsafe { (kernels.table().tile_4_bit)(&t) }
    }

    /// Row by row, by the int8 tile.
    fn unpacked(&self, kernels: &Kernels, sums: &mut [f32], resume: bool) {
        let Panels { k, width, .. } = self.panels;
        let mut steps = vec![0; k * width];
        let mut scales = vec![0.0; self.panels.groups() * self.panels.group_scales()];
        self.panels.unpack_records(kernels, &self.records, &mut steps, &mut scales);
        for (row, sums) in sums.chunks_exact_mut(width).enumerate() {
            let a = quads(kernels, &self.a[row * k..][..k]);
            let t = self.args(sums, resume);
            let t = TileArgs {
                a: a.as_ptr(),
                a_scales: t.a_scales.wrapping_add(row * t.a_groups),
                a_offsets: t.a_offsets.wrapping_add(row * t.a_groups),
                rows: 1,
                w: steps.as_ptr(),
                w_scales: scales.as_ptr(),
                ..t
            };
            // SAFETY: as above.
            unsafe { (kernels.table().tile_int8)(&t) }
        }
    }
}

/// Activations as the int8 tile reads them.
fn quads(kernels: &Kernels, a: &[i8]) -> Vec<u8> {
    let quad = |a: &[i8; 4]| match kernels.table().quad {
        4 => a.map(i8::cast_unsigned).to_vec(),
        _ => [0, 2, 1, 3].iter().flat_map(|&i| i16::from(a[i]).to_ne_bytes()).collect(),
    };
    a.as_chunks().0.iter().flat_map(quad).collect()
}

/// Random nibbles with ordinary scales.
fn records(panels: &Panels) -> Vec<u8> {
    let stored = |&x: &f32| match panels.format {
        WeightFormat::Mxfp4 => bf16::from_f32(x).to_bits(),
        _ => f16::from_f32(x).to_bits(),
    };
    let mut bytes: Vec<u8> =
        noise_vec(3, panels.bytes().unwrap()).iter().map(|x| (x.to_bits() >> 3) as u8).collect();
    let head = 2 * panels.group_scales();
    for (record, seed) in bytes.chunks_exact_mut(panels.record_bytes()).zip(4..) {
        let scales: Vec<u16> = noise_vec(seed, panels.group_scales()).iter().map(stored).collect();
        record[..head].copy_from_slice(bytemuck::cast_slice(&scales));
    }
    bytes
}

#[test]
fn the_largest_sums_of_a_group_are_exact() {
    for (activation, nibbles) in [(127, 0xff), (-127, 0xff), (-127, 0)] {
        for (format, group) in [WeightFormat::Int4(32), WeightFormat::Int4Min(32)]
            .into_iter()
            .flat_map(|format| GROUPS.map(|group| (format, group)))
        {
            let mut case = Case::new(format, group, 4, 32, 2, Flush::Right);
            case.a.fill(activation);
            case.a_offsets.fill(-128 * group as i32 * i32::from(activation));
            let (head, record) = (2 * case.panels.group_scales(), case.panels.record_bytes());
            case.records.chunks_exact_mut(record).for_each(|record| record[head..].fill(nibbles));
            for kernels in tiers() {
                let (mut got, mut want) = (vec![0.0; 4 * 32], vec![0.0; 4 * 32]);
                case.packed(&kernels, &mut got, false);
                case.unpacked(&kernels, &mut want, false);
                assert_eq!(got, want, "{kernels:?} {format}");
            }
        }
    }
}

#[test]
fn packed_and_unpacked_weights_give_the_same_bits() {
    let formats =
        [32, 64, 128].into_iter().flat_map(|group| [WeightFormat::Int4(group), WeightFormat::Int4Min(group)]);
    let formats = formats.chain([WeightFormat::Mxfp4]);
    for (format, group) in formats.flat_map(|format| GROUPS.map(|group| (format, group))) {
        for (rows, width) in (1..=8).flat_map(|rows| [(rows, 32), (rows, 64)]) {
            for (groups, flush) in
                [1, 2, 5].into_iter().flat_map(|groups| Flush::BOTH.map(|flush| (groups, flush)))
            {
                let case = Case::new(format, group, rows, width, groups, flush);
                for (kernels, resume) in
                    tiers().flat_map(|kernels| [false, true].map(|resume| (kernels, resume)))
                {
                    let before =
                        if resume { noise_vec(9, rows * width) } else { vec![f32::NAN; rows * width] };
                    let (mut got, mut want) = (Guarded::new(flush, &before), before);
                    case.packed(&kernels, &mut got, resume);
                    case.unpacked(&kernels, &mut want, resume);
                    let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
                    assert_eq!(
                        bits(&got),
                        bits(&want),
                        "{kernels:?} {format} by {group}, {rows} x {width}, {groups} groups"
                    );
                    assert!(want.iter().all(|sum| sum.is_finite()));
                }
            }
        }
    }
}
