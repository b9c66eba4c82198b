//! The types of the GPU path for a build without the feature `gpu`. [`Gpu`], [`DeviceArray`] and
//! [`DeviceTargets`] have no values, so a device is always the CPU there, and code that handles a
//! GPU needs no conditional compilation.

use std::ops::Range;
use std::time::Duration;

use crate::ops::{Op, Operation, Request};
use crate::plan::{ExecutionPlan, Traffic};
use crate::problem::dtype::Elements;
use crate::problem::limits::CallLimits;
use crate::problem::operands::Operands;
use crate::problem::waiting::Reading;
use crate::{Adapter, DType, DeviceChoice, Error, Shape, Tuning};

#[path = "gpu/interface.rs"]
mod interface;

pub(crate) use interface::{DeviceInputs, DeviceOperands, Opened, Results};
use interface::{Failed, Refused};

#[derive(Clone, Debug)]
pub enum Gpu {}

pub(crate) async fn open(_: &DeviceChoice) -> Result<Opened, Refused> {
    Err(Refused {
        reason: "built without the feature `gpu`".to_owned(),
        rejected_adapters: Vec::new(),
    })
}

pub(crate) async fn list() -> Vec<Adapter> {
    Vec::new()
}

impl Gpu {
    pub(crate) fn name(&self) -> &str {
        match *self {}
    }

    pub(crate) fn backend(&self) -> &'static str {
        match *self {}
    }

    pub(crate) fn tuning(&self) -> Tuning {
        match *self {}
    }

    pub(crate) fn with_tuning(&self, _: Tuning) -> Result<Self, Error> {
        match *self {}
    }

    pub(crate) fn plan(
        &self,
        _: Operation,
        _: Shape,
        _: DType,
        _: CallLimits,
    ) -> Result<ExecutionPlan, Error> {
        match *self {}
    }

    pub(crate) async fn run(
        &self,
        _: &mut Request<'_>,
        _whole: bool,
        _: CallLimits,
    ) -> Result<Option<String>, Failed> {
        match *self {}
    }

    pub(crate) async fn upload(
        &self,
        _: Shape,
        _: (Elements<'_>, usize),
        _: CallLimits,
    ) -> Result<DeviceArray, Error> {
        match *self {}
    }

    pub(crate) async fn upload_targets(
        &self,
        _: Shape,
        _: &Operands<'_>,
        _: CallLimits,
    ) -> Result<DeviceTargets, Error> {
        match *self {}
    }
}

#[derive(Clone, Debug)]
pub(crate) enum DeviceArray {}

#[derive(Clone, Debug)]
pub(crate) enum DeviceTargets {}

impl DeviceArray {
    pub(crate) async fn read<T>(&self, _: Range<usize>, _: CallLimits) -> Result<Vec<T>, Error> {
        match *self {}
    }

    pub(crate) async fn run(
        &self,
        _: Op,
        _: DType,
        _: &Operands<'_>,
        _: DeviceOperands<'_>,
    ) -> Result<Results, Error> {
        match *self {}
    }

    pub(crate) async fn sum(&self, _: CallLimits) -> Result<f64, Error> {
        match *self {}
    }
}

pub(crate) enum Timing {}

impl Timing {
    pub(crate) fn sets(inputs: &DeviceInputs, _bytes: u64) -> u64 {
        match inputs.logits {}
    }

    pub(crate) async fn new(
        inputs: Vec<DeviceInputs>,
        _: Op,
        _: DType,
        _: &Operands<'_>,
    ) -> Result<Self, Error> {
        match inputs.first() {
            Some(inputs) => match inputs.logits {},
            None => Err(Error::NoGpu { wanted: "gpu".to_owned(), reason: "no inputs".to_owned() }),
        }
    }

    pub(crate) fn is_hardware(&self) -> bool {
        match *self {}
    }

    pub(crate) fn traffic(&self) -> Traffic {
        match *self {}
    }

    pub(crate) fn operation(&mut self, _timeout: Duration) -> Result<Reading, Error> {
        match *self {}
    }

    pub(crate) fn copy(&mut self, _timeout: Duration) -> Result<Reading, Error> {
        match *self {}
    }
}
