//! Devices that share GPUs: replicas, and MIG devices. How many of each GPU.
//!
//! | policy | of all that meet the request, the one with |
//! |---|---|
//! | [`Distributed`](Policy::Distributed) | the most even use: the GPU with the most devices in use has as few as can be, then the next, and so on |
//! | [`Packed`](Policy::Packed) | the fewest GPUs that nobody uses yet, then the fewest GPUs |
//! | [`DifferentGpus`](Policy::DifferentGpus) | the most different GPUs, then the most even use |
//!
//! Where GPUs are equal in that, links decide, as they do among whole GPUs. The
//! work is the number of devices asked for times that of GPUs, and one choice of
//! whole GPUs where there are equals.

use std::cmp::Reverse;

use super::Chooser;

/// Which of the devices that share GPUs are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Spread over the GPUs that have the fewest in use.
    #[default]
    Distributed,
    /// On as few GPUs as can be, those in use first.
    Packed,
    /// Each on another GPU, as long as there are others.
    DifferentGpus,
}

impl Policy {
    /// Every policy, the default first.
    pub const ALL: [Self; 3] = [Self::Distributed, Self::Packed, Self::DifferentGpus];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Distributed => "distributed",
            Self::Packed => "packed",
            Self::DifferentGpus => "different-gpus",
        }
    }
}

/// One GPU, as the devices of a resource see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Its position in the topology.
    pub gpu: usize,
    /// Devices that may be given, those that must be included.
    pub free: usize,
    /// Devices that must be given.
    pub must: usize,
    /// Devices that others use.
    pub used: usize,
}

/// How many devices to give of each GPU of `loads`, in their order, `size` in all
/// or as many as there are; at least those that must be.
#[must_use]
pub fn spread(chooser: &Chooser, policy: Policy, loads: &[Load], size: usize) -> Vec<usize> {
    let mut spread = Spread::new(chooser, loads, size);
    match policy {
        Policy::Distributed => spread.even_out(),
        Policy::Packed => spread.pack(),
        Policy::DifferentGpus => {
            spread.one_of_each();
            spread.even_out();
        }
    }
    spread.given
}

struct Spread<'a> {
    chooser: &'a Chooser,
    loads: &'a [Load],
    given: Vec<usize>,
    /// How many are still to be given.
    more: usize,
}

impl<'a> Spread<'a> {
    fn new(chooser: &'a Chooser, loads: &'a [Load], size: usize) -> Self {
        let given: Vec<_> = loads.iter().map(|load| load.must).collect();
        let must: usize = given.iter().sum();
        let free: usize = loads.iter().map(|load| load.free.max(load.must)).sum();
        Self {
            chooser,
            loads,
            given,
            more: size.min(free).saturating_sub(must),
        }
    }

    /// What a GPU can give beside what it gives.
    fn rest(&self, at: usize) -> usize {
        self.loads[at].free.saturating_sub(self.given[at])
    }

    fn give(&mut self, at: usize, count: usize) {
        let count = count.min(self.rest(at)).min(self.more);
        self.given[at] += count;
        self.more -= count;
    }

    /// Those that can give more, and are as wanted.
    fn with_rest(&self, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let all = 0..self.loads.len();
        all.filter(|at| self.rest(*at) > 0 && wanted(*at)).collect()
    }

    /// One device at a time for the GPU with the fewest in use: no other way is
    /// more even.
    fn even_out(&mut self) {
        while self.more > 0 {
            let in_use = |at: usize| self.loads[at].used + self.given[at];
            let Some(fewest) = self.with_rest(|_| true).into_iter().map(in_use).min() else {
                return;
            };
            let (others, same): (Vec<_>, Vec<_>) = self
                .with_rest(|at| in_use(at) == fewest)
                .into_iter()
                .partition(|at| self.given[*at] == 0);
            let of_others = self.pick(&others, self.more);
            let of_same = self.pick(&same, self.more - of_others.len());
            for at in of_others.into_iter().chain(of_same) {
                self.give(at, 1);
            }
        }
    }

    /// A device of each GPU that gives none, those with the fewest in use first.
    fn one_of_each(&mut self) {
        let new = self.with_rest(|at| self.given[at] == 0);
        for at in self.first(new, self.more, |load| load.used) {
            self.give(at, 1);
        }
    }

    /// What gives already gives all; then what is in use, and what is not where
    /// that does not suffice.
    fn pack(&mut self) {
        for at in self.with_rest(|at| self.given[at] > 0) {
            self.give(at, usize::MAX);
        }
        let used = self.with_rest(|at| self.given[at] == 0 && self.loads[at].used > 0);
        let idle = self.with_rest(|at| self.given[at] == 0 && self.loads[at].used == 0);
        let of_used = used.iter().map(|at| self.rest(*at)).sum();
        let largest_first = |load: &Load| Reverse(load.free);
        let needed = self.fewest(&idle, self.more.saturating_sub(of_used));
        let idle = self.first(idle, needed, largest_first);
        let of_idle = idle.iter().map(|at| self.rest(*at)).sum();
        let needed = self.fewest(&used, self.more.saturating_sub(of_idle));
        let mut chosen = self.first(used.clone(), needed.saturating_sub(1), largest_first);
        chosen.extend(self.tightest(&used, &chosen, needed, of_idle));
        for at in chosen.into_iter().chain(idle) {
            self.give(at, usize::MAX);
        }
    }

    /// How many GPUs it takes at least to give so many.
    fn fewest(&self, of: &[usize], devices: usize) -> usize {
        let mut rests: Vec<_> = of.iter().map(|at| self.rest(*at)).collect();
        rests.sort_unstable_by_key(|rest| Reverse(*rest));
        let mut sum = 0;
        let missing = |rest: &&usize| {
            let before = sum;
            sum += **rest;
            before < devices
        };
        rests.iter().take_while(missing).count()
    }

    /// The last of `needed` GPUs, after `chosen`: the one with the least that
    /// suffices, so that the larger stay whole.
    fn tightest(
        &self,
        of: &[usize],
        chosen: &[usize],
        needed: usize,
        of_idle: usize,
    ) -> Option<usize> {
        if needed == 0 {
            return None;
        }
        let given: usize = chosen.iter().map(|at| self.rest(*at)).sum();
        let missing = self.more.saturating_sub(of_idle + given);
        let left = of.iter().copied().filter(|at| !chosen.contains(at));
        let suffices: Vec<_> = left.filter(|at| self.rest(*at) >= missing).collect();
        self.first(suffices, 1, |load| load.free).pop()
    }

    /// So many of them, those with the least `key` first, and of equals those that
    /// links decide for.
    fn first<Key: Ord>(
        &self,
        mut of: Vec<usize>,
        count: usize,
        key: impl Fn(&Load) -> Key,
    ) -> Vec<usize> {
        let key = |at: &usize| key(&self.loads[*at]);
        of.sort_by_key(key);
        let mut first = Vec::new();
        for equals in of.chunk_by(|a, b| key(a) == key(b)) {
            first.extend(self.pick_beside(&first, equals, count - first.len()));
        }
        first
    }

    fn pick(&self, of: &[usize], count: usize) -> Vec<usize> {
        self.pick_beside(&[], of, count)
    }

    /// So many of equals: those with the best links to each other, to what gives
    /// already and to `beside`.
    fn pick_beside(&self, beside: &[usize], of: &[usize], count: usize) -> Vec<usize> {
        if count == 0 || of.len() <= count {
            return of.iter().copied().take(count).collect();
        }
        let gpu = |at: usize| self.loads[at].gpu;
        let giving = (0..self.loads.len()).filter(|at| self.given[*at] > 0);
        let must: Vec<_> = giving
            .chain(beside.iter().copied())
            .filter(|at| !of.contains(at))
            .map(gpu)
            .collect();
        let equals: Vec<_> = of.iter().copied().map(gpu).collect();
        let choice = self.chooser.choose(&equals, &must, must.len() + count);
        let chosen = |at: &usize| choice.gpus.binary_search(&gpu(*at)).is_ok();
        let mut picked: Vec<_> = of.iter().copied().filter(chosen).collect();
        // GPUs that the topology does not have are as good as any.
        let missing = of.iter().copied().filter(|at| !chosen(at));
        picked.extend(missing.take(count.saturating_sub(picked.len())));
        picked
    }
}

#[cfg(test)]
mod tests;
