// A layer on a GPU, of any cell: the tensors of one direction as the schedules take them, its results.
#include <memory>
#include <vector>

#include "bind/cuda_tensors.h"
#include "bind/layer.h"
#include "cuda/layer.h"

namespace frd::bind {
namespace {

inline constexpr int64_t PERSISTENT = 2;  // of the schedules: fused_rnn_dropout/schedules.py

// The arguments of one direction, on the device.
class Layer : public LayerArguments {
 public:
  explicit Layer(const Direction& d) : Layer(d, d.settings) {}

  // Their memory lives as long as this does.
  template <class D>
  cuda::LayerInputs<D> inputs() const {
    using S = cuda::State<D>;
    cuda::LayerInputs<D> p;
    p.cell = cell;
    p.sequence = batch.sequence;
    p.random = random.random;
    p.inputs = shapes.inputs;
    p.units = shapes.units;
    p.projected = shapes.projected;
    p.x = read<D>(dense.x);
    p.w_ih = weight_of(dense.w_ih, FLAG_WEIGHT_IH, KIND_WEIGHT_IH);
    p.w_hh = weight_of(dense.w_hh, FLAG_WEIGHT_HH, KIND_WEIGHT_HH);
    p.w_hr = weight_of(dense.w_hr, FLAG_WEIGHT_HR, KIND_WEIGHT_HR);
    p.b_ih = read<S>(dense.b_ih);
    p.b_hh = read<S>(dense.b_hh);
    p.h0 = read<S>(dense.h0);
    p.c0 = read<S>(dense.c0);
    return p;
  }

  const Device device;
  const Random random;
  const Tensors dense;  // x in `dtype`, states and biases in `compute`, weights in their own types

 private:
  Layer(const Direction& d, const Settings& s)
      : LayerArguments(d),
        device(on_one_device(given)),
        random(given.x, s.example_ids, s.rng, s.thresholds, s.flags, s.layer, s.reverse, s.step_offset, batch.sequence,
               first()),
        dense{bind::dense(given.x, dtype),      bind::dense(given.h0, compute),
              bind::dense(given.c0, compute),   in_own_type(given.w_ih),
              in_own_type(given.w_hh),          bind::dense(given.b_ih, compute),
              bind::dense(given.b_hh, compute), given.w_hr ? MaybeTensor(in_own_type(*given.w_hr)) : std::nullopt} {}

  static const Tensor& on_one_device(const Tensors& t) {
    check_devices(t.x, t.h0, t.c0, t.w_ih, t.w_hh, t.b_ih, t.b_hh, t.w_hr);
    return t.x;
  }
  static Tensor in_own_type(const Tensor& t) { return bind::dense(t, t.scalar_type()); }
};

// One direction forward: its results, and the same as a schedule takes them.
template <class D>
struct ForwardCall {
  using S = cuda::State<D>;
  Tensor out;
  Forward found;
  cuda::LayerForward<D> p;

  ForwardCall(const Layer& l, Keep keep)
      : out(l.device.empty(l.batch.shape(l.shapes.projected), l.dtype)), found(results(l, keep)), p{l.inputs<D>()} {
    const bool has_c = l.info().has_c, all = keep == KEEP_ALL, beside = l.info().keeps_beside(keep);
    const bool states = keeps_states(l, keep);
    p.gates = where<D>(all, found.gates);
    p.cells = where<S>(beside && has_c, found.beside);
    p.apart = where<D>(beside && !has_c, found.beside);
    p.states = where<D>(states, found.states);
    p.out = data<D>(out);
    p.h_n = data<D>(found.h_n);
    p.c_n = found.c_n ? data<D>(*found.c_n) : nullptr;
  }

  // After the schedule.
  Forward finish(const Layer& l, MaybeTensor& y) {
    if (l.count == 1) {
      y = out;
    } else {
      if (!y) y = l.device.empty(l.batch.shape(l.width()), l.dtype);
      Tensor columns = torch::stable::narrow(*y, -1, l.first(), l.shapes.projected);
      torch::stable::copy_(columns, out);
    }
    return found;
  }

 private:
  static bool keeps_states(const Layer& l, Keep keep) { return keep && l.h_apart(l.dtype); }
  static Forward results(const Layer& l, Keep keep) {
    const Device& device = l.device;
    const bool has_c = l.info().has_c, all = keep == KEEP_ALL, beside = l.info().keeps_beside(keep);
    return {.h_n = device.empty(l.of_h(), l.dtype),
            .c_n = has_c ? MaybeTensor(device.empty(l.of_c(), l.dtype)) : std::nullopt,
            .gates = device.room(all, {l.rows(), l.gate_rows()}, l.dtype),
            .beside = device.room(beside, {l.rows(), l.shapes.units}, has_c ? l.compute : l.dtype),
            .states = device.room(keeps_states(l, keep), {l.rows(), l.shapes.projected}, l.dtype)};
  }
};

using LayerList = std::vector<std::unique_ptr<Layer>>;

template <class D>
std::vector<Forward> forward_in(const LayerList& layers, int64_t schedule, Keep keep, MaybeTensor& y) {
  std::vector<ForwardCall<D>> calls;
  std::vector<cuda::LayerForward<D>> passes;
  for (const auto& layer : layers) {
    calls.emplace_back(*layer, keep);
    passes.push_back(calls.back().p);
  }
  if (schedule == PERSISTENT) {
    cuda::persistent(passes, layers[0]->device.around());
  } else {
    for (size_t i = 0; i < layers.size(); ++i) cuda::alternating(passes[i], layers[i]->device.around());
  }
  std::vector<Forward> found;
  for (size_t i = 0; i < layers.size(); ++i) found.push_back(calls[i].finish(*layers[i], y));
  return found;
}

// One direction backward: what is kept of its forward, its gradients, and the same as a schedule takes them.
template <class D>
struct BackwardCall {
  using S = cuda::State<D>;
  const Layer& l;
  const Kept k;
  const Columns h;
  const std::optional<Columns> dout;
  Gradients found;
  cuda::LayerBackward<D> p;

  BackwardCall(const Layer& layer, Keep keep, const Kept& kept, int64_t needs)
      : l(layer),
        k(checked(layer, keep, kept)),
        h(k.h(l, l.dtype, true)),
        dout(k.dout(l, l.dtype, true)),
        p{l.inputs<D>()} {
    const Device& device = l.device;
    const int64_t H = l.shapes.units, P = l.shapes.projected, GH = l.gate_rows();
    const bool beside = l.info().keeps_beside(keep), has_c = l.info().has_c;
    const auto wants = [needs](int64_t bit) { return (needs & bit) != 0; };
    const bool wants_hr = l.given.w_hr && wants(NEEDS_W_HR), wants_bias = l.given.b_ih && wants(NEEDS_BIAS);
    const bool bias_apart = wants_bias && l.info().apart;
    const auto of_weight = [&](bool wanted, const MaybeTensor& weight, int64_t rows, int64_t columns) {
      return device.room(wanted, {rows, columns}, weight ? weight->scalar_type() : l.compute);
    };
    found.x = device.room(wants(NEEDS_X), l.batch.shape(l.shapes.inputs), l.dtype);
    found.h0 = device.empty(l.of_h(), l.compute);
    if (has_c) found.c0 = device.empty(l.of_c(), l.compute);
    found.w_ih = of_weight(wants(NEEDS_W_IH), l.given.w_ih, GH, l.shapes.inputs);
    found.w_hh = of_weight(wants(NEEDS_W_HH), l.given.w_hh, GH, P);
    found.b_ih = device.room(wants_bias, {GH}, l.compute);
    found.b_hh = device.room(bias_apart, {GH}, l.compute);
    found.w_hr = of_weight(wants_hr, l.given.w_hr, P, H);
    p.gates = keep == KEEP_ALL ? read<D>(k.gates) : nullptr;
    p.cells = beside && has_c ? read<S>(k.beside) : nullptr;
    p.apart = beside && !has_c ? read<D>(k.beside) : nullptr;
    p.states = h.rows<D>();
    p.dout = dout ? dout->template rows<D>() : nullptr;
    p.dh_n = read<D>(k.grad_h_n);
    p.dc_n = read<D>(k.grad_c_n);
    p.dx = where<D>(wants(NEEDS_X), found.x);
    p.dw_ih = where<void>(wants(NEEDS_W_IH), found.w_ih);
    p.dw_hh = where<void>(wants(NEEDS_W_HH), found.w_hh);
    p.dw_hr = where<void>(wants_hr, found.w_hr);
    p.db_ih = where<S>(wants_bias, found.b_ih);
    p.db_hh = where<S>(bias_apart, found.b_hh);
    p.dh0 = data<S>(found.h0);
    p.dc0 = found.c0 ? data<S>(*found.c0) : nullptr;
  }

 private:
  static Kept checked(const Layer& l, Keep keep, const Kept& kept) {
    check_devices(l.given.x, kept.gates, kept.beside, kept.states, kept.y, kept.grad_y, kept.grad_h_n, kept.grad_c_n);
    return kept.dense(l, keep, l.dtype, l.dtype);
  }
};

template <class D>
std::vector<Gradients> backward_in(const LayerList& layers, int64_t schedule, const std::vector<BackwardOf>& passes,
                                   Keep keep) {
  std::vector<std::unique_ptr<BackwardCall<D>>> calls;
  std::vector<cuda::LayerBackward<D>> all;
  for (size_t i = 0; i < layers.size(); ++i) {
    calls.push_back(std::make_unique<BackwardCall<D>>(*layers[i], keep, passes[i].kept, passes[i].needs));
    all.push_back(calls.back()->p);
  }
  if (schedule == PERSISTENT) {
    cuda::persistent(all, layers[0]->device.around());
  } else {
    for (size_t i = 0; i < layers.size(); ++i) cuda::alternating(all[i], layers[i]->device.around());
  }
  std::vector<Gradients> found;
  for (const auto& call : calls) found.push_back(call->found.in_types_of(call->l.given));
  return found;
}

// In the type of the results.
struct Gpu {
  // The rows that a layer reads, or their gradient, with the mask of their site: a kernel of its own, since products
  // are torch's.
  static Tensor masked(const LayerCall& call, const char* name, const Tensor& rows) {
    check_flags(call.flags);
    const uint32_t flags = static_cast<uint32_t>(call.flags);
    const OuterSite* const site = outer_site(flags, false);
    if (!site) return rows;
    check_layer(call.layer, flags);
    const Batch batch(call.x, call.batch_sizes, -1, false);
    check_shape(name, rows, batch.shape(rows.dim() ? rows.size(-1) : 0));
    check_floating(name, rows);
    check_device(rows, call.x);
    STD_TORCH_CHECK(call.thresholds.has_value(), "thresholds are needed where a site is configured");
    STD_TORCH_CHECK(call.rng.has_value(), "rng is needed where sites draw masks");
    check_groups(*call.rng);
    check_device(*call.rng, call.x);
    const Tensor pairs = dense(*call.rng, ScalarType::Long);
    const Tensor rates = device_integers("thresholds", *call.thresholds, NUM_SITES, call.x);
    MaybeTensor ids;
    if (call.example_ids) ids = device_integers("example_ids", *call.example_ids, batch.sequence.batch, call.x);
    const Device device(call.x);
    cuda::DropRows p{};
    p.per_step = per_step(*site, flags);
    p.batch_shared = flags & site->shared_flag;
    p.stream = stream_of(site->kind, static_cast<uint32_t>(call.layer), 0);
    p.step_offset = check_steps(call.step_offset, batch.sequence.steps);
    p.rng = read<int64_t>(pairs) + 2 * site->group;
    p.threshold = read<int64_t>(rates) + site->threshold;
    p.example_ids = read<int64_t>(ids);
    return masked_rows(device, batch, rows, p);
  }

  static void check_schedule(int64_t schedule) {
    STD_TORCH_CHECK(schedule == EVERY_LAYER || schedule == PERSISTENT, "schedule must be ", EVERY_LAYER, " or ",
                    PERSISTENT, ", got ", schedule);
  }
  static std::vector<Forward> forward(const std::vector<Direction>& directions, Keep keep, MaybeTensor& y) {
    LayerList layers;
    for (const Direction& direction : directions) layers.push_back(std::make_unique<Layer>(direction));
    return cuda::with_type(type_of(layers[0]->dtype), [&](auto value) {
      return forward_in<decltype(value)>(layers, directions[0].settings.schedule, keep, y);
    });
  }
  static std::vector<Gradients> backward(const std::vector<BackwardOf>& passes, Keep keep) {
    LayerList layers;
    for (const BackwardOf& p : passes) layers.push_back(std::make_unique<Layer>(p.direction));
    return cuda::with_type(type_of(layers[0]->dtype), [&](auto value) {
      return backward_in<decltype(value)>(layers, passes[0].direction.settings.schedule, passes, keep);
    });
  }
};

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) {
  m.impl("layer", TORCH_BOX(&LayerOperators<Gpu>::layer));
  m.impl("layer_forward", TORCH_BOX(&LayerOperators<Gpu>::layer_forward));
  m.impl("layer_backward", TORCH_BOX(&LayerOperators<Gpu>::layer_backward));
}

}  // namespace frd::bind
