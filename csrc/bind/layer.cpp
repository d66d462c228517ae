// A layer on the CPU, of any cell: the tensors of one direction as the kernels take them, its results.
#include <vector>

#include "bind/layer.h"
#include "bind/tensors.h"
#include "cpu/layer.h"

namespace frd::bind {
namespace {

// The arguments of one direction, its numbers as the kernels take them.
class Layer : public LayerArguments {
 public:
  explicit Layer(const Direction& d) : Layer(d, d.settings) {}

  Tensor empty(const std::vector<int64_t>& shape) const { return bind::empty(shape, compute); }
  Tensor room(bool wanted, const std::vector<int64_t>& shape) const { return bind::room(wanted, shape, compute); }

  // Their memory lives as long as this does.
  template <class T>
  cpu::LayerInputs<T> inputs() const {
    cpu::LayerInputs<T> p;
    p.parallel = parallel();
    p.sequence = batch.sequence;
    p.masks = random.masks;
    p.inputs = shapes.inputs;
    p.units = shapes.units;
    p.projected = shapes.projected;
    p.first = first();
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

  const Random random;
  const Tensors dense;  // in `compute`

 private:
  Layer(const Direction& d, const Settings& s)
      : LayerArguments(d),
        random(s.example_ids, s.rng, s.thresholds, s.flags, s.layer, s.reverse, s.step_offset, batch.sequence.batch,
               batch.sequence.steps),
        dense{in_compute(given.x),    in_compute(given.h0),   in_compute(given.c0),   in_compute(given.w_ih),
              in_compute(given.w_hh), in_compute(given.b_ih), in_compute(given.b_hh), in_compute(given.w_hr)} {}

  template <class Maybe>
  Maybe in_compute(const Maybe& t) const {
    return bind::dense(t, compute);
  }
};

template <class T>
Forward forward_in(const Layer& l, Keep keep, MaybeTensor& y) {
  const bool all = keep == KEEP_ALL, beside = l.info().keeps_beside(keep), states = keep && l.h_apart(l.compute);
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
  p.out = data<T>(*y) + l.first();
  p.out_stride = l.width();
  p.h_n = data<T>(found.h_n);
  p.c_n = found.c_n ? data<T>(*found.c_n) : nullptr;
  kernels().of<T>().forward[l.cell](p);
  found.h_n = in_type(found.h_n, l.dtype);
  if (found.c_n) found.c_n = in_type(*found.c_n, l.dtype);
  return found;
}

template <class T>
Gradients backward_in(const Layer& l, Keep keep, const Kept& kept, int64_t needs) {
  const int64_t H = l.shapes.units, P = l.shapes.projected, GH = l.gate_rows();
  const Kept k = kept.dense(l, keep, l.compute);
  const Columns h = k.h(l, l.compute, false);
  const std::optional<Columns> dout = k.dout(l, l.compute, false);

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = l.given.w_hr && wants(NEEDS_W_HR), wants_bias = l.given.b_ih && wants(NEEDS_BIAS);
  const bool bias_apart = wants_bias && l.info().apart;
  const Tensor dx = l.room(wants(NEEDS_X), l.batch.shape(l.shapes.inputs)), dh0 = l.empty(l.of_h());
  const MaybeTensor dc0 = l.info().has_c ? MaybeTensor(l.empty(l.of_c())) : std::nullopt;
  const Tensor dw_ih = l.room(wants(NEEDS_W_IH), {GH, l.shapes.inputs}), dw_hh = l.room(wants(NEEDS_W_HH), {GH, P});
  const Tensor dw_hr = l.room(wants_hr, {P, H}), db_ih = l.room(wants_bias, {GH}), db_hh = l.room(bias_apart, {GH});
  cpu::LayerBackward<T> p{l.inputs<T>()};
  p.gates = keep == KEEP_ALL ? read<T>(k.gates) : nullptr;
  p.beside = l.info().keeps_beside(keep) ? read<T>(k.beside) : nullptr;
  p.states = h.rows<T>();
  p.states_stride = h.stride;
  p.dout = dout ? dout->rows<T>() : nullptr;
  p.dout_stride = dout ? dout->stride : 0;
  p.dh_n = read<T>(k.grad_h_n);
  p.dc_n = read<T>(k.grad_c_n);
  p.dx = where<T>(wants(NEEDS_X), dx);
  p.dw_ih = where<T>(wants(NEEDS_W_IH), dw_ih);
  p.dw_hh = where<T>(wants(NEEDS_W_HH), dw_hh);
  p.dw_hr = where<T>(wants_hr, dw_hr);
  p.db_ih = where<T>(wants_bias, db_ih);
  p.db_hh = where<T>(bias_apart, db_hh);
  p.dh0 = data<T>(dh0);
  p.dc0 = dc0 ? data<T>(*dc0) : nullptr;
  kernels().of<T>().backward[l.cell](p);
  return Gradients{dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr}.in_types_of(l.given);
}

// In the type that a layer computes in.
struct Cpu {
  // The kernels mask rows where they read or write them.
  static const Tensor& masked(const LayerCall&, const char*, const Tensor& rows) { return rows; }
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
