// A layer on the CPU, of any cell: one direction of it, its arguments checked, its tensors as the kernels take them,
// its results.
#include <optional>
#include <vector>

#include "bind/layer_call.h"
#include "bind/tensors.h"
#include "core/cells.h"
#include "cpu/schedule.h"

namespace frd::bind {
namespace {

// The arguments of one direction, checked.
class Layer {
 public:
  explicit Layer(const Direction& direction) : Layer(direction, direction.tensors, direction.settings) {}

  const CellInfo& info() const { return CELLS[cell]; }
  int64_t rows() const { return batch.sequence.rows; }
  int64_t gate_rows() const { return info().gates * shapes.units; }
  int64_t width() const { return count * shapes.projected; }  // of y
  std::vector<int64_t> of_h() const { return {batch.sequence.batch, shapes.projected}; }
  std::vector<int64_t> of_c() const { return {batch.sequence.batch, shapes.units}; }
  Tensor empty(const std::vector<int64_t>& shape) const { return bind::empty(shape, compute); }
  Tensor room(bool wanted, const std::vector<int64_t>& shape) const { return bind::room(wanted, shape, compute); }

  // The numbers as the kernels take them, which live as long as this does.
  template <class T>
  cpu::LayerInputs<T> inputs() const {
    cpu::LayerInputs<T> p;
    p.parallel = parallel();
    p.sequence = batch.sequence;
    p.masks = random.masks;
    p.inputs = shapes.inputs;
    p.units = shapes.units;
    p.projected = shapes.projected;
    p.x = read<T>(dense.x);
    p.w_ih = read<T>(dense.w_ih);
    p.w_hh = read<T>(dense.w_hh);
    p.w_hr = read<T>(dense.w_hr);
    p.b_ih = read<T>(dense.b_ih);
    p.b_hh = read<T>(dense.b_hh);
    p.h0 = read<T>(dense.h0);
    p.c0 = read<T>(dense.c0);
    return p;
  }

  const Cell cell;
  const int64_t index, count;
  const Tensors& given;
  const LayerShapes shapes;
  const ScalarType dtype, compute;
  const Batch batch;
  const Random random;
  const Tensors dense;  // in `compute`

 private:
  Layer(const Direction& direction, const Tensors& given, const Settings& s)
      : cell(direction.cell),
        index(direction.index),
        count(direction.count),
        given(given),
        shapes(info(), given.x, given.h0, given.c0, given.w_ih, given.w_hh, given.b_ih, given.b_hh, given.w_hr),
        dtype(s.dtype),
        compute(dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
        batch(given.x, s.batch_sizes, given.h0.size(0), s.reverse),
        random(s.example_ids, s.rng, s.thresholds, s.flags, s.layer, s.reverse, s.step_offset, batch.sequence.batch,
               batch.sequence.steps),
        dense{in_compute(given.x),    in_compute(given.h0),   in_compute(given.c0),   in_compute(given.w_ih),
              in_compute(given.w_hh), in_compute(given.b_ih), in_compute(given.b_hh), in_compute(given.w_hr)} {}

  template <class Maybe>
  Maybe in_compute(const Maybe& t) const {
    return bind::dense(t, compute);
  }
};

// Whether the h that backward reads is another tensor than y.
bool states_apart(const Layer& l) { return l.dtype != l.compute || l.info().output_differs(l.random.masks.flags); }

template <class T>
Forward forward_in(const Layer& l, Keep keep, MaybeTensor& y) {
  const bool all = keep == KEEP_ALL, beside = l.info().keeps_beside(keep), states = keep && states_apart(l);
  if (!y) y = l.empty(l.batch.shape(l.width()));
  Forward found{.h_n = l.empty(l.of_h()),
                .c_n = l.info().has_c ? MaybeTensor(l.empty(l.of_c())) : std::nullopt,
                .gates = l.room(all, {l.rows(), l.gate_rows()}),
                .beside = l.room(beside, {l.rows(), l.shapes.units}),
                .states = l.room(states, {l.rows(), l.shapes.projected})};
  cpu::LayerForward<T> p{l.inputs<T>()};
  p.keep = keep;
  p.gates = where<T>(all, found.gates);
  p.beside = where<T>(beside, found.beside);
  p.states = where<T>(states, found.states);
  p.out = data<T>(*y) + l.index * l.shapes.projected;
  p.out_stride = l.width();
  p.h_n = data<T>(found.h_n);
  p.c_n = found.c_n ? data<T>(*found.c_n) : nullptr;
  kernels().of<T>().forward[l.cell](p);
  found.h_n = in_type(found.h_n, l.dtype);
  if (found.c_n) found.c_n = in_type(*found.c_n, l.dtype);
  return found;
}

// The columns of one direction in a tensor of all of them, y or its gradient: rows of P that lie `stride` apart.
struct Columns {
  Tensor held;
  int64_t first, stride;

  Columns(const Layer& l, const Tensor& all) : held(all), first(l.index * l.shapes.projected), stride(l.width()) {
    check_storage(all);
    if (all.scalar_type() == l.compute && all.is_contiguous()) return;
    held = dense(torch::stable::narrow(held, -1, first, l.shapes.projected), l.compute);
    first = 0, stride = l.shapes.projected;
  }
  template <class T>
  const T* rows() const {
    return read<T>(held) + first;
  }
};

template <class T>
Gradients backward_in(const Layer& l, Keep keep, const Kept& k, int64_t needs) {
  const int64_t H = l.shapes.units, P = l.shapes.projected, N = l.rows(), GH = l.gate_rows();
  const bool all = keep == KEEP_ALL, has_beside = l.info().keeps_beside(keep), apart = states_apart(l);
  const Tensor beside = has_beside ? saved_as("beside", k.beside, l.compute, {N, H}, l.given.x) : k.beside;
  const Tensor gates = all ? saved_as("gates", k.gates, l.compute, {N, GH}, l.given.x) : k.gates;
  const Tensor states = apart ? saved_as("states", k.states, l.compute, {N, P}, l.given.x) : k.states;
  STD_TORCH_CHECK(apart || k.y, "y is needed where its h are not kept apart");
  check_floating("grad_h_n", k.grad_h_n);
  check_floating("grad_c_n", k.grad_c_n);
  const MaybeTensor dh_n = dense(k.grad_h_n, l.compute), dc_n = dense(k.grad_c_n, l.compute);
  check_shape("grad_y", k.grad_y, l.batch.shape(l.width()));
  check_shape("y", k.y, l.batch.shape(l.width()));
  check_shape("grad_h_n", dh_n, l.of_h());
  check_shape("grad_c_n", dc_n, l.of_c());
  if (!apart) saved_as("y", *k.y, l.compute, l.batch.shape(l.width()), l.given.x);
  const std::optional<Columns> dout = k.grad_y ? std::optional<Columns>(std::in_place, l, *k.grad_y) : std::nullopt;
  const std::optional<Columns> h = apart ? std::nullopt : std::optional<Columns>(std::in_place, l, *k.y);

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = l.given.w_hr && wants(NEEDS_W_HR), wants_bias = l.given.b_ih && wants(NEEDS_BIAS);
  const Tensor dx = l.room(wants(NEEDS_X), l.batch.shape(l.shapes.inputs)), dh0 = l.empty(l.of_h());
  const MaybeTensor dc0 = l.info().has_c ? MaybeTensor(l.empty(l.of_c())) : std::nullopt;
  const Tensor dw_ih = l.room(wants(NEEDS_W_IH), {GH, l.shapes.inputs}), dw_hh = l.room(wants(NEEDS_W_HH), {GH, P});
  const Tensor dw_hr = l.room(wants_hr, {P, H}), db_ih = l.room(wants_bias, {GH});
  const Tensor db_hh = l.room(wants_bias && l.info().apart, {GH});
  cpu::LayerBackward<T> p{l.inputs<T>()};
  p.gates = all ? read<T>(gates) : nullptr;
  p.beside = has_beside ? read<T>(beside) : nullptr;
  p.states = apart ? read<T>(states) : h->rows<T>();
  p.states_stride = apart ? P : h->stride;
  p.dout = dout ? dout->rows<T>() : nullptr;
  p.dout_stride = dout ? dout->stride : 0;
  p.dh_n = read<T>(dh_n);
  p.dc_n = read<T>(dc_n);
  p.dx = where<T>(wants(NEEDS_X), dx);
  p.dw_ih = where<T>(wants(NEEDS_W_IH), dw_ih);
  p.dw_hh = where<T>(wants(NEEDS_W_HH), dw_hh);
  p.dw_hr = where<T>(wants_hr, dw_hr);
  p.db_ih = where<T>(wants_bias, db_ih);
  p.db_hh = where<T>(wants_bias && l.info().apart, db_hh);
  p.dh0 = data<T>(dh0);
  p.dc0 = dc0 ? data<T>(*dc0) : nullptr;
  kernels().of<T>().backward[l.cell](p);

  // Each in the type of what it is the gradient of.
  const auto as = [](const Tensor& gradient, const MaybeTensor& given) {
    return given ? in_type(gradient, given->scalar_type()) : gradient;
  };
  return {.x = as(dx, l.given.x),
          .h0 = as(dh0, l.given.h0),
          .c0 = dc0 ? MaybeTensor(as(*dc0, l.given.c0)) : std::nullopt,
          .w_ih = as(dw_ih, l.given.w_ih),
          .w_hh = as(dw_hh, l.given.w_hh),
          .b_ih = as(db_ih, l.given.b_ih),
          .b_hh = as(db_hh, l.given.b_hh),
          .w_hr = as(dw_hr, l.given.w_hr)};
}

// One direction, in the type that its layer computes in.
struct Cpu {
  static Forward forward(const Direction& direction, Keep keep, MaybeTensor& y) {
    const Layer l(direction);
    return l.compute == ScalarType::Double ? forward_in<double>(l, keep, y) : forward_in<float>(l, keep, y);
  }
  static Gradients backward(const Direction& direction, Keep keep, const Kept& kept, int64_t needs) {
    const Layer l(direction);
    return l.compute == ScalarType::Double ? backward_in<double>(l, keep, kept, needs)
                                           : backward_in<float>(l, keep, kept, needs);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CPU, m) {
  m.impl("layer", TORCH_BOX(&LayerOperators<Cpu>::layer));
  m.impl("layer_forward", TORCH_BOX(&LayerOperators<Cpu>::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&LayerOperators<Cpu>::layer_backward));
}

}  // namespace frd::bind
