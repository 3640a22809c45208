// What is running, by the number that JS has given it, so that JS can stop it.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace lunpath {

// An entry lasts as long as what Begin() returns for it is held: by the job and by what converts its value, so until
// the promise has settled, however it does. Any thread.
template <class Progress>
class Running {
 public:
  std::shared_ptr<Progress> Begin(double id) {
    auto entry = std::make_shared<Entry>(table_, id);
    const std::lock_guard lock(table_->mutex);
    table_->entries[id] = &entry->progress;
    // Cannot be found before it is returned: there is one main thread.
    return {entry, &entry->progress};
  }

  // Calls `use` with the progress of `id`, which cannot end meanwhile; false where there is none.
  template <class Use>
  bool With(double id, Use use) const {
    const std::lock_guard lock(table_->mutex);
    const auto found = table_->entries.find(id);
    if (found == table_->entries.end()) return false;
    use(*found->second);
    return true;
  }

 private:
  struct Table {
    std::mutex mutex;
    std::unordered_map<double, Progress*> entries;
  };
  struct Entry {
    Entry(std::shared_ptr<Table> in, double number) : table(std::move(in)), id(number) {}
    ~Entry() {
      const std::lock_guard lock(table->mutex);
      table->entries.erase(id);
    }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    std::shared_ptr<Table> table;
    double id;
    Progress progress;
  };

  std::shared_ptr<Table> table_ = std::make_shared<Table>();
};

}  // namespace lunpath
