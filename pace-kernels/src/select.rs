//! The largest elements of a row.

use std::cmp::Ordering;

use crate::Kernels;

/// Elements that are looked at without a branch between them.
const BLOCK: usize = 128;

impl Kernels {
    /// The index of the largest element, the first one of equals. NaN never wins; without a number
    /// in the row the result is 0.
    pub fn argmax(&self, x: &[f32]) -> usize {
        let (mut best, mut at) = (f32::NEG_INFINITY, 0);
        for (i, block) in x.chunks(BLOCK).enumerate() {
            let max = self.max(block);
            if max > best {
                (best, at) = (max, i * BLOCK);
            }
        }
        x[at..].iter().position(|&x| x == best).map_or(0, |within| at + within)
    }

    /// The largest elements in descending order, and their indices; of equals the one with the lower
    /// index comes first. NaN is passed over. Returns how many were found: as many as `values` holds, or
    /// all numbers of the row if they are fewer. What follows them is unspecified.
    ///
    /// The cost is that of reading the row, and a step of a heap for every element that is among the
    /// largest so far.
    ///
    /// # Panics
    /// If `values` and `indices` differ in length, or the row has 2^32 elements and more.
    pub fn top_k(&self, x: &[f32], values: &mut [f32], indices: &mut [u32]) -> usize {
        assert_eq!(values.len(), indices.len(), "lengths of values and indices");
        assert!(u32::try_from(x.len()).is_ok(), "a row of {} elements", x.len());
        let mut heap = Heap { values, indices, len: 0 };
        if heap.values.is_empty() {
            return 0;
        }
        for (i, block) in x.chunks(BLOCK).enumerate() {
            // Not even the largest element of most blocks is among the largest of the row.
            if heap.is_full() && self.max(block) <= heap.values[0] {
                continue;
            }
            for (j, &value) in block.iter().enumerate() {
                heap.offer(value, (i * BLOCK + j) as u32);
            }
        }
        heap.sort();
        heap.len
    }
}

/// The largest elements so far, as a binary heap with the least of them at the root.
struct Heap<'a> {
    values: &'a mut [f32],
    indices: &'a mut [u32],
    len: usize,
}

impl Heap<'_> {
    fn is_full(&self) -> bool {
        self.len == self.values.len()
    }

    /// Takes the element in if there is room, or if it is larger than the least. Indices ascend from
    /// call to call, so an equal one comes too late.
    fn offer(&mut self, value: f32, index: u32) {
        if self.is_full() {
            if value > self.values[0] {
                self.values[0] = value;
                self.indices[0] = index;
                self.sift_down(0, self.len);
            }
        } else if !value.is_nan() {
            self.values[self.len] = value;
            self.indices[self.len] = index;
            self.len += 1;
            self.sift_up(self.len - 1);
        }
    }

    /// Descending order, by taking the least away again and again.
    fn sort(&mut self) {
        for end in (1..self.len).rev() {
            self.swap(0, end);
            self.sift_down(0, end);
        }
    }

    /// Whether element `a` comes after element `b` in the result.
    fn is_less(&self, a: usize, b: usize) -> bool {
        match self.values[a].partial_cmp(&self.values[b]) {
            Some(Ordering::Less) => true,
            Some(Ordering::Equal) => self.indices[a] > self.indices[b],
            _ => false,
        }
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 && self.is_less(at, (at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sift_down(&mut self, mut at: usize, end: usize) {
        while 2 * at + 1 < end {
            let left = 2 * at + 1;
            let right = left + 1;
            let least = if right < end && self.is_less(right, left) { right } else { left };
            if !self.is_less(least, at) {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.values.swap(a, b);
        self.indices.swap(a, b);
    }
}
