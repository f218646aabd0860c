// The Python face of the engine: transports/engine/__init__.py says what each function is for.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "engine.hpp"
#include "mailbox.hpp"
#include "quick_calls.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace treering {
namespace {

using Table = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
constexpr size_t kStepColumns = 15, kDependencyColumns = 4;

std::shared_ptr<Program> make_program(Table steps, Table dependencies, std::vector<int64_t> call, size_t buffers,
                                      int64_t divisor) {
  if (steps.shape(1) != kStepColumns || dependencies.shape(1) != kDependencyColumns || call.size() != 7) {
    throw nb::value_error("a program's tables have the wrong shape");
  }
  auto program = std::make_shared<Program>();
  program->buffers = buffers;
  program->divisor = divisor;
  program->call.collective = static_cast<uint8_t>(call[0]);
  program->call.dtype = static_cast<uint8_t>(call[1]);
  program->call.op = static_cast<uint8_t>(call[2]);
  program->call.root = static_cast<int32_t>(call[3]);
  program->call.count = static_cast<uint64_t>(call[4]);
  program->call.algorithm = static_cast<uint32_t>(call[5]);
  program->call.extra = static_cast<uint32_t>(call[6]);
  program->call.point_to_point = 0;
  for (size_t i = 0; i < steps.shape(0); i++) {
    const int64_t* c = steps.data() + i * kStepColumns;
    Step s{};
    s.kind = static_cast<Kind>(c[0]);
    s.peer = static_cast<int32_t>(c[1]);
    s.lane = static_cast<uint16_t>(c[2]);
    s.dtype = static_cast<Dtype>(c[3]);
    s.local_first = c[5] != 0;
    s.a_buffer = static_cast<uint32_t>(c[6]);
    s.a_offset = static_cast<uint64_t>(c[7]);
    s.b_buffer = static_cast<uint32_t>(c[8]);
    s.b_offset = static_cast<uint64_t>(c[9]);
    s.out_buffer = static_cast<uint32_t>(c[10]);
    s.out_offset = static_cast<uint64_t>(c[11]);
    s.bytes = static_cast<uint64_t>(c[12]);
    s.dependencies_begin = static_cast<uint32_t>(c[13]);
    s.dependencies_end = static_cast<uint32_t>(c[14]);
    if (c[0] < 0 || c[0] > 5 || c[3] < 0 || c[3] >= kDtypes || c[4] < 0 || c[4] >= kOps || c[2] < 0 ||
        c[2] >= kLanes || s.dependencies_end > dependencies.shape(0) || s.dependencies_begin > s.dependencies_end ||
        std::max({s.a_buffer, s.b_buffer, s.out_buffer}) >= buffers) {
      throw nb::value_error("a program's step is out of range");
    }
    if (s.kind == Kind::recv_reduce || s.kind == Kind::reduce) s.combine = kernels().combine[c[3]][c[4]];
    if (s.kind == Kind::divide) s.divide = kernels().divide[c[3]];
    bool computes = s.kind == Kind::recv_reduce || s.kind == Kind::reduce;
    if ((computes && s.combine == nullptr) || (s.kind == Kind::divide && s.divide == nullptr)) {
      throw nb::value_error("the operation has no meaning for the dtype");
    }
    program->steps.push_back(s);
  }
  for (size_t i = 0; i < dependencies.shape(0); i++) {
    const int64_t* c = dependencies.data() + i * kDependencyColumns;
    if (c[0] < 0 || static_cast<size_t>(c[0]) >= steps.shape(0)) throw nb::value_error("a dependency on no step");
    program->dependencies.push_back({static_cast<uint32_t>(c[0]), static_cast<uint64_t>(c[1]),
                                     static_cast<uint64_t>(c[2]), static_cast<uint64_t>(c[3])});
  }
  program->make_queues();
  return program;
}

std::shared_ptr<Program> make_message(bool sends, int peer, int dtype, uint64_t count, uint64_t bytes) {
  auto program = std::make_shared<Program>();
  Step s{};
  s.kind = sends ? Kind::send : Kind::recv;
  s.dtype = static_cast<Dtype>(dtype);
  s.lane = kMessageLane;
  s.peer = peer;
  s.bytes = bytes;
  program->buffers = 1;
  program->steps.push_back(s);
  program->call.dtype = static_cast<uint8_t>(dtype);
  program->call.count = count;
  program->call.point_to_point = 1;
  program->make_queues();
  return program;
}

// The memory of an array: an integer address, or an object with the buffer protocol, which must be C-contiguous.
char* address(nb::handle array) {
  if (PyLong_CheckExact(array.ptr())) return static_cast<char*>(PyLong_AsVoidPtr(array.ptr()));
  Py_buffer view;
  if (PyObject_GetBuffer(array.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  char* data = static_cast<char*>(view.buf);
  PyBuffer_Release(&view);  // the caller holds the array until the call ends
  return data;
}

bool signal_pending() {
  nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}
const std::function<bool()> kSignals = signal_pending;

int finish(FailureKind kind) {
  if (kind == FailureKind::interrupted && PyErr_Occurred() != nullptr) throw nb::python_error();
  return static_cast<int>(kind);
}

int run(Engine& engine, const std::shared_ptr<Program>& program, double timeout_s, const std::vector<char*>& buffers) {
  FailureKind kind;
  if (program->steps.empty()) {
    kind = engine.run(program, buffers, timeout_s, kSignals);
  } else {
    nb::gil_scoped_release no_gil;
    kind = engine.run(program, buffers, timeout_s, kSignals);
  }
  return finish(kind);
}

void need_buffers(const Program& program, size_t given) {
  if (given != program.buffers) throw nb::value_error("a program got the wrong number of buffers");
}

// A call with everything resolved: no lookups, no conversions, only the run.
struct PreparedCall {
  std::shared_ptr<Engine> engine;
  std::shared_ptr<Program> program;
  std::vector<char*> buffers;
  double timeout_s;
  nb::object result, keep, on_failure;

  nb::object operator()() const {
    int kind = run(*engine, program, timeout_s, buffers);
    if (kind != 0) return on_failure(kind);
    return result;
  }
};

nb::dict to_dict(const Call& c) {
  nb::dict d;
  d["seq"] = c.seq;
  d["elements"] = c.count;
  d["algorithm"] = c.algorithm;
  d["root"] = c.root;
  d["collective"] = c.collective;
  d["dtype"] = c.dtype;
  d["op"] = c.op;
  d["point_to_point"] = c.point_to_point;
  d["extra"] = c.extra;
  return d;
}

nb::list stop_trace(Engine& engine) {
  Trace trace;
  {
    nb::gil_scoped_release no_gil;
    trace = engine.stop_trace();
  }
  nb::list calls;
  for (const TracedCall& call : trace) {
    nb::list steps;
    for (const TracedStep& s : call.steps) {
      steps.append(nb::make_tuple(static_cast<int>(s.kind), s.peer, s.lane, s.bytes, s.began_s, s.ended_s));
    }
    calls.append(nb::make_tuple(call.call.seq, call.began_s, call.ended_s, steps));
  }
  return calls;
}

nb::object describe(Engine& engine) {
  Failure f = engine.failure();
  if (f.kind == FailureKind::none) return nb::none();
  nb::dict d;
  d["kind"] = static_cast<int>(f.kind);
  d["culprit"] = f.culprit;
  d["detector"] = f.detector;
  d["reason"] = static_cast<int>(f.reason);
  d["mine"] = to_dict(f.mine);
  d["theirs"] = to_dict(f.theirs);
  d["step"] = f.step;
  d["waited_s"] = f.waited_s;
  return d;
}

// A started call, with what must live until it ends.
struct StartedCall {
  std::shared_ptr<Engine> engine;
  std::shared_ptr<Job> job;

  // True when it is done; waits at most `wait_s`, in slices so that Ctrl-C is heard.
  bool wait(double wait_s) const {
    for (;;) {
      double slice = std::min(wait_s, 0.05);
      bool done;
      {
        nb::gil_scoped_release no_gil;
        done = engine->wait(*job, std::max(slice, 0.0));
      }
      wait_s -= slice;
      if (done || wait_s <= 0) return done;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  }
};

// A posted message, with what must live until it is done.
struct PostedLetter {
  std::shared_ptr<Mailbox> mailbox;
  std::shared_ptr<Letter> letter;

  // As StartedCall::wait.
  bool wait(double wait_s) const {
    for (;;) {
      double slice = std::min(wait_s, 0.05);
      bool done;
      {
        nb::gil_scoped_release no_gil;
        done = mailbox->wait(*letter, std::max(slice, 0.0));
      }
      wait_s -= slice;
      if (done || wait_s <= 0) return done;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  }
};

// The kernels of one variant by name; the best ones for no name.
const Kernels& variant_of(const std::string& name) {
  if (name.empty()) return kernels();
  for (const Kernels* const* v = kernel_variants(); *v != nullptr; v++) {
    if (name == (*v)->name) return **v;
  }
  throw nb::value_error("this processor has no such variant of the kernels");
}

}  // namespace
}  // namespace treering

NB_MODULE(_engine, m) {
  using namespace treering;
  if (PyArray_ImportNumPyAPI() < 0) throw nb::python_error();
  nb::set_leak_warnings(false);  // a traceback may keep a communicator to the very end

  nb::class_<Program>(m, "Program")
      .def_prop_ro("steps", [](const Program& p) { return p.steps.size(); })
      .def_prop_ro("channels", [](const Program& p) {
        nb::list out;
        for (const Queue& q : p.queues) {
          const Step& s = p.steps[q.steps[0]];
          if (s.sends() || s.receives()) out.append(nb::make_tuple(s.peer, s.lane));
        }
        return out;
      });
  m.def("make_program", &make_program, "steps"_a, "dependencies"_a, "call"_a, "buffers"_a, "divisor"_a);
  m.def("make_message", &make_message, "sends"_a, "peer"_a, "dtype"_a, "count"_a, "bytes"_a);

  nb::class_<StartedCall>(m, "StartedCall")
      .def("wait", &StartedCall::wait, "wait_s"_a)
      .def_prop_ro("result", [](const StartedCall& c) { return static_cast<int>(c.job->result); })
      .def_prop_ro("step", [](const StartedCall& c) { return c.job->step; })
      .def_prop_ro("seq", [](const StartedCall& c) { return c.job->seq; });

  nb::class_<PostedLetter>(m, "PostedLetter")
      .def("wait", &PostedLetter::wait, "wait_s"_a)
      .def_prop_ro("result", [](const PostedLetter& p) { return static_cast<int>(p.letter->result); })
      .def_prop_ro("source", [](const PostedLetter& p) { return p.letter->source; });

  nb::class_<PreparedCall>(m, "PreparedCall").def("__call__", &PreparedCall::operator());

  nb::class_<Engine>(m, "Engine", nb::is_weak_referenceable())
      .def(nb::init<int, int, uint32_t, uint16_t, int>(), "rank"_a, "size"_a, "comm"_a, "epoch"_a, "spins"_a)
      .def("attach_control", &Engine::attach_control, "peer"_a, "fd"_a)
      .def("attach_tcp", [](Engine& e, int peer, int lane, int fd) {
        e.attach_lane(peer, lane, std::make_unique<TcpLane>(fd));
      }, "peer"_a, "lane"_a, "fd"_a)
      .def("attach_shm", [](Engine& e, int peer, int lane, int memfd, size_t ring_bytes, int side, int my_bell,
                            int their_bell) {
        e.attach_lane(peer, lane, std::make_unique<ShmLane>(memfd, ring_bytes, side, my_bell, their_bell,
            [&e, peer](uint32_t id, uint64_t up_to) { return e.peer_region(peer, id, up_to); }));
      }, "peer"_a, "lane"_a, "memfd"_a, "ring_bytes"_a, "side"_a, "my_bell"_a, "their_bell"_a)
      .def_static("segment_bytes", &ShmLane::segment_bytes, "ring_bytes"_a)
      .def("has_lane", &Engine::has_lane, "peer"_a, "lane"_a)
      .def("add_region", [](Engine& e, uintptr_t base, uint64_t bytes, int fd) {
        return e.add_region(reinterpret_cast<char*>(base), bytes, fd);
      }, "base"_a, "bytes"_a, "fd"_a)
      .def("drop_region", &Engine::drop_region, "region"_a)
      .def("run", [](Engine& e, const std::shared_ptr<Program>& program, double timeout_s, nb::args arrays) {
        need_buffers(*program, arrays.size());
        std::vector<char*> buffers;
        buffers.reserve(arrays.size());
        for (nb::handle array : arrays) buffers.push_back(address(array));
        return run(e, program, timeout_s, buffers);
      })
      .def("start", [](std::shared_ptr<Engine> e, std::shared_ptr<Program> program, double timeout_s, nb::args arrays) {
        need_buffers(*program, arrays.size());
        std::vector<char*> buffers;
        for (nb::handle array : arrays) buffers.push_back(address(array));
        nb::gil_scoped_release no_gil;
        return StartedCall{e, e->start(std::move(program), std::move(buffers), timeout_s)};
      })
      .def("prepare", [](std::shared_ptr<Engine> e, std::shared_ptr<Program> program, double timeout_s,
                         nb::object result, nb::object keep, nb::object on_failure, nb::args arrays) {
        need_buffers(*program, arrays.size());
        std::vector<char*> buffers;
        for (nb::handle array : arrays) buffers.push_back(address(array));
        return PreparedCall{std::move(e), std::move(program), std::move(buffers), timeout_s,
                            std::move(result), std::move(keep), std::move(on_failure)};
      }, "program"_a, "timeout_s"_a, "result"_a.none(), "keep"_a.none(), "on_failure"_a, "buffers"_a)
      .def("start_trace", &Engine::start_trace, nb::call_guard<nb::gil_scoped_release>())
      .def("stop_trace", &stop_trace)
      .def("failure", &describe)
      .def("connecting", &Engine::connecting, "peer"_a)
      .def("departed", &Engine::departed, "peer"_a)
      .def("fail", [](Engine& e, int kind, int culprit, int reason, double waited_s, const Program& program,
                      uint64_t seq) {
        Failure f;
        f.kind = static_cast<FailureKind>(kind);
        f.culprit = culprit;
        f.detector = e.rank();
        f.reason = static_cast<Reason>(reason);
        f.waited_s = waited_s;
        f.mine = program.call;
        f.mine.seq = seq;
        e.fail(f);
      }, "kind"_a, "culprit"_a, "reason"_a, "waited_s"_a, "program"_a, "seq"_a)
      .def("close", &Engine::close, nb::call_guard<nb::gil_scoped_release>())
      .def("forked", &Engine::forked)
      .def_prop_ro("seq", &Engine::seq)
      .def_prop_ro("failed_step", &Engine::failed_step)
      .def_prop_ro("bytes_sent", [](const Engine& e) { return e.bytes_sent() + e.bytes_direct(); })
      .def_prop_ro("bytes_direct", &Engine::bytes_direct)
      .def_prop_ro("bytes_to", &Engine::bytes_to);

  nb::class_<Mailbox>(m, "Mailbox")
      .def(nb::init<std::shared_ptr<Engine>>(), "engine"_a)
      .def("post", [](std::shared_ptr<Mailbox> mailbox, bool sends, int peer, int tag, int dtype, uint64_t count,
                      uint64_t bytes, double timeout_s, uintptr_t address) {
        Letter letter;
        letter.sends = sends;
        letter.peer = peer;
        letter.tag = tag;
        letter.dtype = static_cast<uint8_t>(dtype);
        letter.count = count;
        letter.bytes = bytes;
        letter.timeout_s = timeout_s;
        letter.data = reinterpret_cast<char*>(address);
        nb::gil_scoped_release no_gil;
        auto posted = mailbox->post(std::move(letter));
        return PostedLetter{std::move(mailbox), std::move(posted)};
      }, "sends"_a, "peer"_a, "tag"_a, "dtype"_a, "count"_a, "bytes"_a, "timeout_s"_a, "address"_a)
      .def("close", &Mailbox::close, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<QuickCalls>(m, "QuickCalls")
      .def("__init__", [](QuickCalls* self, std::shared_ptr<Engine> engine, nb::object on_failure) {
        new (self) QuickCalls(std::move(engine), std::move(on_failure), run);
      }, "engine"_a, "on_failure"_a)
      .def("set_tensor_type", &QuickCalls::set_tensor_type, "type"_a)
      .def("add", &QuickCalls::add, "collective"_a, "x"_a, "out"_a.none(), "op"_a, "root"_a, "algorithm"_a, "program"_a,
           "token"_a, "timeout_s"_a, "make"_a.none(), "shape"_a, "gets"_a)
      .def("call", &QuickCalls::call, "collective"_a, "x"_a.none(), "out"_a.none(), "op"_a, "root"_a, "algorithm"_a)
      .def("set_scratch", &QuickCalls::set_scratch, "address"_a)
      .def("clear", &QuickCalls::clear);

  m.def("kernel_variants", [] {
    std::vector<std::string> names;
    for (const Kernels* const* v = kernel_variants(); *v != nullptr; v++) names.emplace_back((*v)->name);
    return names;
  });
  m.def("combine", [](int dtype, int op, uintptr_t out, uintptr_t a, uintptr_t b, size_t elements,
                      const std::string& variant) {
    Combine f = dtype >= 0 && dtype < kDtypes && op >= 0 && op < kOps ? variant_of(variant).combine[dtype][op] : nullptr;
    if (f == nullptr) throw nb::value_error("the operation has no meaning for the dtype");
    nb::gil_scoped_release no_gil;
    f(reinterpret_cast<char*>(out), reinterpret_cast<const char*>(a), reinterpret_cast<const char*>(b), elements);
  }, "dtype"_a, "op"_a, "out"_a, "a"_a, "b"_a, "elements"_a, "variant"_a = "");
  m.def("divide", [](int dtype, uintptr_t out, uintptr_t a, size_t elements, int64_t divisor,
                     const std::string& variant) {
    Divide f = dtype >= 0 && dtype < kDtypes && divisor > 0 ? variant_of(variant).divide[dtype] : nullptr;
    if (f == nullptr) throw nb::value_error("a division has no meaning for the dtype, or for a divisor below 1");
    nb::gil_scoped_release no_gil;
    f(reinterpret_cast<char*>(out), reinterpret_cast<const char*>(a), elements, divisor);
  }, "dtype"_a, "out"_a, "a"_a, "elements"_a, "divisor"_a, "variant"_a = "");
}
