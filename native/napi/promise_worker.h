// Jobs on threads of their own, settled as promises. libuv's pool is never used: its four threads would be blocked by
// calls that may wait for seconds (a tgtd that hangs, a guest that keeps its disk), and with them every file
// operation of the process.
#pragma once

#include <napi.h>

#include <cerrno>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "napi/error.h"
#include "sys/result.h"
#include "sys/thread.h"

namespace lunpath {

// A queue of jobs and the threads that run them, a member of one ObjectWrap. All public functions: main thread only.
//
// Lifetime: pending jobs keep the event loop and the owner alive; an idle worker keeps neither. The threads hold the
// shared state, never the owner: when the environment ends, waiting jobs are dropped, a running one ends on its own
// time and its result goes nowhere. So a job must own all it touches (capture shared_ptrs to core objects).
//
// Whatever a job or the conversion of its value throws becomes the rejection of its promise (CaughtError()). So does
// the lack of a thread, where there is none at all; with fewer than there may be, jobs wait for those.
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

  // What the last of the threads does at its end, when no job runs any more and none will. Where no thread was ever
  // started it is dropped. Before the first Run().
  void AtEnd(std::function<void()> end) { state_->at_end = std::move(end); }

  // Runs `job` on a worker thread, then `convert` on the main thread with its value. The promise rejects with the
  // job's Error, and with ERR_CLOSED after RefuseNew(). With Settles::kLast it begins when the jobs before it have
  // ended, and settles when no other is pending: for a close() that waits. Where no thread was ever started it runs at
  // once, on this one: nothing was begun, so there is little to end.
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
    auto task = std::make_unique<TaskOf<T>>(deferred, std::move(job), std::move(convert));
    task->settles = settles;
    if (settles == Settles::kLast && !HasThreads()) {
      task->Execute();
      task->Finish(env);
    } else if (auto failure = Enqueue(std::move(task))) {
      deferred.Reject(ToJsError(env, *failure));
    }
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
  struct State;

  // A job, its promise and what has become of it. Between two threads it is handed on without an allocation, which
  // could fail where nobody could be told.
  struct Task {
    virtual ~Task() = default;
    virtual void Execute() noexcept = 0;     // on a worker thread
    virtual void Finish(Napi::Env env) = 0;  // on the main thread
    Settles settles = Settles::kAtOnce;
    std::unique_ptr<Task> next;    // in a queue
    std::shared_ptr<State> state;  // while it is on its way to the main thread
  };

  template <class T>
  struct TaskOf : Task {
    TaskOf(Napi::Promise::Deferred promise, std::function<Result<T>()> run,
           std::function<Napi::Value(Napi::Env, T&)> to_js)
        : deferred(promise), job(std::move(run)), convert(std::move(to_js)) {}

    void Execute() noexcept override {
      try {
        result.emplace(job());
      } catch (...) {
        Caught();
      }
      job = nullptr;
    }

    void Finish(Napi::Env env) override {
      if (result && result->ok()) {
        try {
          const Napi::Value value = convert(env, result->value());
          deferred.Resolve(value);
          return;
        } catch (const Napi::Error& thrown) {
          deferred.Reject(thrown.Value());
          return;
        } catch (...) {
          Caught();
        }
      }
      deferred.Reject(ToJsError(env, result ? result->error() : ErrnoError(ENOMEM, "", "A native call failed")));
    }

    // In a catch block. Without the memory for an error there is no result at all.
    void Caught() noexcept {
      try {
        result.emplace(CaughtError());
      } catch (...) {
        result.reset();
      }
    }

    Napi::Promise::Deferred deferred;
    std::function<Result<T>()> job;
    std::function<Napi::Value(Napi::Env, T&)> convert;
    std::optional<Result<T>> result;
  };

  // Tasks in order, linked through themselves.
  class Queue {
   public:
    Queue() = default;
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;
    ~Queue() {
      while (!empty()) Pop();
    }
    void Push(std::unique_ptr<Task> task) noexcept {
      Task* const added = task.release();
      (tail_ == nullptr ? head_ : tail_->next).reset(added);
      tail_ = added;
      ++size_;
    }
    std::unique_ptr<Task> Pop() noexcept {
      std::unique_ptr<Task> first = std::move(head_);
      head_ = std::move(first->next);
      if (!head_) tail_ = nullptr;
      --size_;
      return first;
    }
    void Swap(Queue& other) noexcept {
      std::swap(head_, other.head_);
      std::swap(tail_, other.tail_);
      std::swap(size_, other.size_);
    }
    bool empty() const { return size_ == 0; }
    int size() const { return size_; }

   private:
    std::unique_ptr<Task> head_;
    Task* tail_ = nullptr;
    int size_ = 0;
  };

  static void OnSettled(Napi::Env env, Napi::Function, std::nullptr_t*, Task* settled) {
    std::unique_ptr<Task> task(settled);
    if (static_cast<napi_env>(env) == nullptr) return;  // the environment is going down
    Napi::HandleScope scope(env);
    const std::shared_ptr<State> state = std::move(task->state);
    if (--state->pending == 0) {
      if (!state->let_go) state->settle.Unref(env);
      state->owner->Unref();
    }
    if (task->settles == Settles::kLast) {
      state->last.Push(std::move(task));
    } else {
      task->Finish(env);
    }
    if (state->pending > 0) return;
    Queue last;
    last.Swap(state->last);
    while (!last.empty()) last.Pop()->Finish(env);
  }
  using Settle = Napi::TypedThreadSafeFunction<std::nullptr_t, Task, &PromiseWorker::OnSettled>;

  struct State {
    std::mutex mutex;  // guards queue, started, idle, running, closed
    std::condition_variable wake;
    std::condition_variable none_runs;
    Queue queue;
    int started = 0;  // threads that have not ended
    int idle = 0;
    int running = 0;  // but for those that come last
    bool closed = false;
    std::function<void()> at_end;  // set before there is a thread, taken by the last one
    Settle settle;
    size_t pending = 0;                              // main thread only
    bool let_go = false;                             // main thread only
    Queue last;                                      // main thread only; wait for pending to become 0
    Napi::Reference<Napi::Object>* owner = nullptr;  // main thread only; alive while pending > 0
  };

  // Why the task cannot be run; then it is gone.
  std::optional<Error> Enqueue(std::unique_ptr<Task> task) {
    if (auto failure = StartThreadIfNeeded()) return failure;
    if (state_->pending == 0) {
      state_->owner->Ref();
      state_->settle.Ref(env_);
    }
    ++state_->pending;
    {
      const std::lock_guard lock(state_->mutex);
      state_->queue.Push(std::move(task));
    }
    state_->wake.notify_one();
    return std::nullopt;
  }

  bool HasThreads() const {
    const std::lock_guard lock(state_->mutex);
    return state_->started > 0;
  }

  std::optional<Error> StartThreadIfNeeded() {
    const std::lock_guard lock(state_->mutex);
    if (state_->started == threads_ || state_->idle > state_->queue.size()) return std::nullopt;
    auto failure = StartThread([state = state_]() mutable noexcept { Loop(std::move(state)); });
    if (!failure) ++state_->started;
    // Slower with fewer threads, and the next call tries again.
    if (state_->started > 0) return std::nullopt;
    return failure;
  }

  static void Loop(std::shared_ptr<State> state) noexcept {
    std::unique_lock lock(state->mutex);
    while (!state->closed) {
      ++state->idle;
      state->wake.wait(lock, [&] { return state->closed || !state->queue.empty(); });
      --state->idle;
      if (!state->closed) RunNext(state, lock);
    }
    const bool is_last = --state->started == 0;
    lock.unlock();
    if (!is_last || !state->at_end) return;
    try {
      state->at_end();
    } catch (...) {
      // Nobody is there any more who could be told.
    }
    state->at_end = nullptr;
  }

  static void RunNext(const std::shared_ptr<State>& state, std::unique_lock<std::mutex>& lock) noexcept {
    std::unique_ptr<Task> task = state->queue.Pop();
    const bool last = task->settles == Settles::kLast;
    if (last) {
      state->none_runs.wait(lock, [&] { return state->closed || state->running == 0; });
    } else {
      ++state->running;
    }
    if (!last || !state->closed) {
      lock.unlock();
      task->Execute();
      lock.lock();
    }
    if (!last && --state->running == 0) state->none_runs.notify_all();
    if (!state->closed) {
      // Shut() releases the thread-safe function under this lock: where closed is false, it is alive.
      task->state = state;
      Task* const handed_on = task.release();
      if (state->settle.NonBlockingCall(handed_on) != napi_ok) task.reset(handed_on);
    }
    // What is dropped goes outside the lock: objects that it holds may take their time.
    if (!task) return;
    lock.unlock();
    task.reset();
    lock.lock();
  }

  static void OnCleanup(void* self) { static_cast<PromiseWorker*>(self)->Shut(); }

  void Shut() {
    closed_ = true;
    Queue dropped;
    {
      const std::lock_guard lock(state_->mutex);
      state_->closed = true;
      dropped.Swap(state_->queue);
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
