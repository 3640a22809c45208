// Jobs on threads of their own, settled as promises. libuv's pool is never used: its four threads would be blocked by
// calls that may wait for seconds (a tgtd that hangs, a guest that keeps its disk), and with them every file
// operation of the process.
#pragma once

#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "napi/error.h"
#include "sys/result.h"

namespace lunpath {

// A queue of jobs and the threads that run them, a member of one ObjectWrap. All public functions: main thread only.
//
// Lifetime: pending jobs keep the event loop and the owner alive; an idle worker keeps neither. The threads hold the
// shared state, never the owner: when the environment ends, waiting jobs are dropped, a running one ends on its own
// time and its result goes nowhere. So a job must own all it touches (capture shared_ptrs to core objects).
class PromiseWorker {
 public:
  PromiseWorker(Napi::Env env, Napi::Reference<Napi::Object>* owner, const char* name, int threads)
      : state_(std::make_shared<State>()), env_(env), threads_(threads) {
    state_->owner = owner;
    state_->settle = Settle::New(env, name, 0, 1, static_cast<std::nullptr_t*>(nullptr));
    state_->settle.Unref(env);
    napi_add_env_cleanup_hook(env_, &PromiseWorker::OnCleanup, this);
  }

  ~PromiseWorker() {
    if (closed_) return;
    napi_remove_env_cleanup_hook(env_, &PromiseWorker::OnCleanup, this);
    Shut();
  }

  PromiseWorker(const PromiseWorker&) = delete;
  PromiseWorker& operator=(const PromiseWorker&) = delete;

  // Runs `job` on a worker thread, then `convert` on the main thread with its value. The promise rejects with the
  // job's Error, and with ERR_CLOSED after RefuseNew(). With Settles::kLast it begins when the jobs before it have
  // ended, and settles when no other is pending: for a close() that waits.
  enum class Settles { kAtOnce, kLast };
  template <class T>
  Napi::Promise Run(std::function<Result<T>()> job, std::function<Napi::Value(Napi::Env, T&)> convert,
                    Settles settles = Settles::kAtOnce) {
    Napi::Env env(env_);
    auto deferred = Napi::Promise::Deferred::New(env);
    if (closed_ || refuses_new_) {
      deferred.Reject(ToJsError(env, Error{.message = "This object is closed", .code = "ERR_CLOSED"}));
      return deferred.Promise();
    }
    Job run = [job = std::move(job), convert = std::move(convert), deferred]() -> Completion {
      auto result = std::make_shared<Result<T>>(job());
      return [result, convert, deferred](Napi::Env env) {
        if (result->ok()) {
          deferred.Resolve(convert(env, result->value()));
        } else {
          deferred.Reject(ToJsError(env, result->error()));
        }
      };
    };
    if (++state_->pending == 1) {
      state_->settle.Ref(env);
      state_->owner->Ref();
    }
    {
      std::lock_guard lock(state_->mutex);
      state_->queue.push_back({std::move(run), settles});
      if (state_->started < threads_ && state_->idle < static_cast<int>(state_->queue.size())) {
        ++state_->started;
        std::thread(&PromiseWorker::Loop, state_).detach();
      }
    }
    state_->wake.notify_one();
    return deferred.Promise();
  }

  // Later calls to Run reject; jobs that are queued or running still settle.
  void RefuseNew() { refuses_new_ = true; }
  bool refuses_new() const { return refuses_new_; }

  // RefuseNew, and jobs that are queued or running no longer keep the event loop alive: for a job that hangs in a
  // library. They still settle where something else keeps the loop alive long enough.
  void LetGo() {
    RefuseNew();
    if (state_->pending > 0 && !state_->let_go) state_->settle.Unref(env_);
    state_->let_go = true;
  }

 private:
  using Completion = std::function<void(Napi::Env)>;
  using Job = std::function<Completion()>;
  struct Queued {
    Job run;
    Settles settles;
  };
  struct State;
  struct Settled {
    std::shared_ptr<State> state;
    Completion complete;
    Settles settles;
  };
  static void OnSettled(Napi::Env env, Napi::Function, std::nullptr_t*, Settled* settled) {
    std::unique_ptr<Settled> owned(settled);
    if (static_cast<napi_env>(env) == nullptr) return;  // the environment is going down
    Napi::HandleScope scope(env);
    State& state = *owned->state;
    if (--state.pending == 0) {
      if (!state.let_go) state.settle.Unref(env);
      state.owner->Unref();
    }
    if (owned->settles == Settles::kLast) {
      state.last.push_back(std::move(owned->complete));
    } else {
      owned->complete(env);
    }
    if (state.pending > 0) return;
    std::deque<Completion> last;
    last.swap(state.last);
    for (const Completion& complete : last) complete(env);
  }
  using Settle = Napi::TypedThreadSafeFunction<std::nullptr_t, Settled, &PromiseWorker::OnSettled>;

  struct State {
    std::mutex mutex;  // guards queue, idle, started, running, closed
    std::condition_variable wake;
    std::condition_variable none_runs;
    std::deque<Queued> queue;
    int started = 0;
    int idle = 0;
    int running = 0;  // but for those that come last
    bool closed = false;
    Settle settle;
    size_t pending = 0;                              // main thread only
    bool let_go = false;                             // main thread only
    std::deque<Completion> last;                     // main thread only; wait for pending to become 0
    Napi::Reference<Napi::Object>* owner = nullptr;  // main thread only; alive while pending > 0
  };

  static void Loop(std::shared_ptr<State> state) {
    std::unique_lock lock(state->mutex);
    for (;;) {
      ++state->idle;
      state->wake.wait(lock, [&] { return state->closed || !state->queue.empty(); });
      --state->idle;
      if (state->closed) return;
      Queued job = std::move(state->queue.front());
      state->queue.pop_front();
      const bool last = job.settles == Settles::kLast;
      if (last) {
        state->none_runs.wait(lock, [&] { return state->closed || state->running == 0; });
        if (state->closed) return;
      } else {
        ++state->running;
      }
      lock.unlock();
      Completion complete = job.run();
      job.run = nullptr;
      lock.lock();
      if (!last && --state->running == 0) state->none_runs.notify_all();
      // Shut() releases the thread-safe function under this lock: where closed is false, it is alive.
      if (state->closed) return;
      state->settle.NonBlockingCall(new Settled{state, std::move(complete), job.settles});
    }
  }

  static void OnCleanup(void* self) { static_cast<PromiseWorker*>(self)->Shut(); }

  void Shut() {
    closed_ = true;
    std::deque<Queued> dropped;
    {
      std::lock_guard lock(state_->mutex);
      state_->closed = true;
      dropped.swap(state_->queue);
      state_->settle.Release();
    }
    state_->wake.notify_all();
    state_->none_runs.notify_all();
  }

  std::shared_ptr<State> state_;
  napi_env env_;
  int threads_;
  bool closed_ = false;
  bool refuses_new_ = false;
};

}  // namespace lunpath
