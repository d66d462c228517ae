// A layer on the CPU, of any cell: the tensors of one direction as the kernels take them, its results.
#include <vector>

#include "bind/layer.h"
#include "bind/tensors.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"

namespace frd::bind {
namespace {

// The arguments of one direction, its numbers as the kernels take them: in the types D and S of cpu/layer.h.
class Layer : public LayerArguments {
 public:
  explicit Layer(const Direction& d) : Layer(d, d.settings) {}

  // Their memory lives as long as this does.
  template <class D>
  cpu::LayerInputs<D> inputs() const {
    using S = cpu::Arithmetic<D>;
    cpu::LayerInputs<D> p;
    p.parallel = parallel();
    p.sequence = batch.sequence;
    p.masks = random.masks;
    p.inputs = shapes.inputs;
    p.units = shapes.units;
    p.projected = shapes.projected;
    p.first = first();
    p.x = read<D>(dense.x);
    p.w_ih = read<D>(dense.w_ih);
    p.w_hh = read<D>(dense.w_hh);
    p.w_hr = read<D>(dense.w_hr);
    p.b_ih = read<S>(dense.b_ih);
    p.b_hh = read<S>(dense.b_hh);
    p.h0 = read<S>(dense.h0);
    p.c0 = read<S>(dense.c0);
    return p;
  }

  const ScalarType value;  // D; S is `compute`
  const Random random;
  const Tensors dense;

 private:
  Layer(const Direction& d, const Settings& s)
      : LayerArguments(d),
        value(dtype == ScalarType::BFloat16 && bf16() != cpu::Bf16::EXACT ? dtype : compute),
        random(s.example_ids, s.rng, s.thresholds, s.flags, s.layer, s.reverse, s.step_offset, batch.sequence.batch,
               batch.sequence.steps),
        dense{.x = bind::dense(given.x, value),
              .h0 = bind::dense(given.h0, compute),
              .c0 = bind::dense(given.c0, compute),
              .w_ih = bind::dense(given.w_ih, value),
              .w_hh = bind::dense(given.w_hh, value),
              .b_ih = bind::dense(given.b_ih, compute),
              .b_hh = bind::dense(given.b_hh, compute),
              .w_hr = bind::dense(given.w_hr, value)} {}
};

// Memory for a result in type T, or nothing where nobody asks.
template <class T>
Tensor room(bool wanted, const std::vector<int64_t>& shape) {
  return bind::room(wanted, shape, scalar_type<T>);
}
template <class T>
Tensor room(const std::vector<int64_t>& shape) {
  return bind::empty(shape, scalar_type<T>);
}

// Calls body(D{}) with the type in memory of a layer.
template <class Body>
auto in_types_of(const Layer& l, Body&& body) {
  switch (l.value) {
  case ScalarType::Double:
    return body(double{});
  case ScalarType::BFloat16:
    return body(cpu::BFloat16{});
  default:
    return body(float{});
  }
}

template <class D>
Forward forward_in(const Layer& l, Keep keep, MaybeTensor& y) {
  using S = cpu::Arithmetic<D>;
  const bool all = keep == KEEP_ALL, beside = l.info().keeps_beside(keep), states = keep && l.h_apart(l.value);
  const bool has_c = l.info().has_c;
  const std::vector<int64_t> of_beside{l.rows(), l.shapes.units};
  if (!y) y = room<D>(l.batch.shape(l.width()));
  Forward found{.h_n = room<S>(l.of_h()),
                .c_n = has_c ? MaybeTensor(room<S>(l.of_c())) : std::nullopt,
                .gates = room<D>(all, {l.rows(), l.gate_rows()}),
                .beside = has_c ? room<S>(beside, of_beside) : room<D>(beside, of_beside),
                .states = room<D>(states, {l.rows(), l.shapes.projected})};
  cpu::LayerForward<D> p{l.inputs<D>()};
  p.keep = keep;
  p.gates = where<D>(all, found.gates);
  p.c = where<S>(beside && has_c, found.beside);
  p.apart = where<D>(beside && !has_c, found.beside);
  p.states = where<D>(states, found.states);
  p.out = data<D>(*y) + l.first();
  p.out_stride = l.width();
  p.h_n = data<S>(found.h_n);
  p.c_n = found.c_n ? data<S>(*found.c_n) : nullptr;
  typed_kernels<D>().forward[l.cell](p);
  found.h_n = in_type(found.h_n, l.dtype);
  if (found.c_n) found.c_n = in_type(*found.c_n, l.dtype);
  return found;
}

template <class D>
Gradients backward_in(const Layer& l, Keep keep, const Kept& kept, int64_t needs) {
  using S = cpu::Arithmetic<D>;
  const int64_t H = l.shapes.units, P = l.shapes.projected, GH = l.gate_rows();
  const Kept k = kept.dense(l, keep, l.value, l.compute);
  const Columns h = k.h(l, l.value, false);
  const std::optional<Columns> dout = k.dout(l, l.value, false);

  const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
  const bool wants_hr = l.given.w_hr && wants(NEEDS_W_HR), wants_bias = l.given.b_ih && wants(NEEDS_BIAS);
  const bool bias_apart = wants_bias && l.info().apart, has_c = l.info().has_c;
  const bool beside = l.info().keeps_beside(keep);
  const Tensor dx = room<D>(wants(NEEDS_X), l.batch.shape(l.shapes.inputs)), dh0 = room<S>(l.of_h());
  const MaybeTensor dc0 = has_c ? MaybeTensor(room<S>(l.of_c())) : std::nullopt;
  const Tensor dw_ih = room<S>(wants(NEEDS_W_IH), {GH, l.shapes.inputs}), dw_hh = room<S>(wants(NEEDS_W_HH), {GH, P});
  const Tensor dw_hr = room<S>(wants_hr, {P, H}), db_ih = room<S>(wants_bias, {GH}), db_hh = room<S>(bias_apart, {GH});
  cpu::LayerBackward<D> p{l.inputs<D>()};
  p.gates = keep == KEEP_ALL ? read<D>(k.gates) : nullptr;
  p.c = beside && has_c ? read<S>(k.beside) : nullptr;
  p.apart = beside && !has_c ? read<D>(k.beside) : nullptr;
  p.states = h.rows<D>();
  p.states_stride = h.stride;
  p.dout = dout ? dout->rows<D>() : nullptr;
  p.dout_stride = dout ? dout->stride : 0;
  p.dh_n = read<S>(k.grad_h_n);
  p.dc_n = read<S>(k.grad_c_n);
  p.dx = where<D>(wants(NEEDS_X), dx);
  p.dw_ih = where<S>(wants(NEEDS_W_IH), dw_ih);
  p.dw_hh = where<S>(wants(NEEDS_W_HH), dw_hh);
  p.dw_hr = where<S>(wants_hr, dw_hr);
  p.db_ih = where<S>(wants_bias, db_ih);
  p.db_hh = where<S>(bias_apart, db_hh);
  p.dh0 = data<S>(dh0);
  p.dc0 = dc0 ? data<S>(*dc0) : nullptr;
  typed_kernels<D>().backward[l.cell](p);
  return Gradients{dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr}.in_types_of(l.given);
}

struct Cpu {
  // The kernels mask rows where they read or write them.
  static const Tensor& masked(const LayerCall&, const char*, const Tensor& rows) { return rows; }
  static void check_schedule(int64_t schedule) {
    STD_TORCH_CHECK(schedule == EVERY_LAYER, "schedule must be 0, which runs every layer, got ", schedule);
  }
  static std::vector<Forward> forward(const std::vector<Direction>& directions, Keep keep, MaybeTensor& y) {
    std::vector<Forward> found;
    for (const Direction& direction : directions) {
      const Layer l(direction);
      found.push_back(in_types_of(l, [&](auto number) { return forward_in<decltype(number)>(l, keep, y); }));
    }
    return found;
  }
  static std::vector<Gradients> backward(const std::vector<BackwardOf>& passes, Keep keep) {
    std::vector<Gradients> found;
    for (const BackwardOf& p : passes) {
      const Layer l(p.direction);
      found.push_back(
          in_types_of(l, [&](auto number) { return backward_in<decltype(number)>(l, keep, p.kept, p.needs); }));
    }
    return found;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CPU, m) {
  m.impl("layer", TORCH_BOX(&LayerOperators<Cpu>::layer));
  m.impl("layer_forward", TORCH_BOX(&LayerOperators<Cpu>::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&LayerOperators<Cpu>::layer_backward));
}

}  // namespace frd::bind
